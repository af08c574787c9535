"""How far to go along a step: the l1 merit function and its weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.errors import NonFiniteError
from bilevel.newton.arrays import Array, Indices
from bilevel.newton.complementarity import QuadraticProgram
from bilevel.newton.curvature import negative_curvature
from bilevel.newton.kkt import Point, RowProgram, Scales
from bilevel.newton.quadratic import QuadraticAnswer
from bilevel.newton.subproblems import Subproblems

_SUFFICIENT_DECREASE = 1e-4
# Fractions of a step: each is a part of the last, a smaller one where the step was far too long.
_CONTRACTION, _FAST_CONTRACTION = 0.5, 0.1
_SHORT_FRACTION, _LEAST_FRACTION = 1e-2, 1e-12
# Halvings of a step along negative curvature.
_HALVINGS = 40
# Below this fraction of a step, the next model is damped.
_SHORT = 0.25
# Factor by which the merit function's weights exceed the multipliers, without which a step on a
# linear model would not lessen it.
_MARGIN = 1.1
# Steps in which the merit function's weights may shrink.
_DECAYS = 10
_MERIT_NOISE = 10.0 * float(np.finfo(np.float64).eps)


class LineSearch:
    r"""Finds points of less merit :math:`\varphi(z) + \sum_i \sigma_i [r_i(z)]_+`.

    The weights follow the multipliers by Powell's rule (which lets them shrink) for some steps,
    then only grow; up to :math:`\rho` where rows are elastic.

    Attributes
    ----------
    damping : float
        What the next model's Hessian should have added to its diagonal.
    """

    def __init__(self, rows: RowProgram, subproblems: Subproblems) -> None:
        self.rows = rows
        self.subproblems = subproblems
        self.move = subproblems.move
        self.damping = 0.0
        self._weights = np.zeros(0)
        self._decays = _DECAYS

    def start(self, point: Point) -> None:
        """Begin a run."""
        self._weights = np.abs(point.multipliers)
        self._decays = _DECAYS
        self.damping = 0.0

    def along(
        self,
        point: Point,
        scales: Scales,
        program: QuadraticProgram,
        answer: QuadraticAnswer,
        multipliers: Array,
        allowed: float,
    ) -> Point | None:
        """The next iterate along the answer's step; ``None`` if none is better.

        The full step is taken unseen by the merit function if its error, measured on ``scales``, is
        at most ``allowed``.
        """
        rows, step = self.rows, answer.step
        full = self._evaluated(self.move(point.z, step), multipliers)
        if full is not None and rows.error(full.residuals, scales) <= allowed:
            self.damping = 0.0
            return full

        # The model's own multipliers, without those of its convexification, make it descend.
        sizes = np.maximum(np.abs(multipliers), np.abs(answer.multipliers))
        self._weights = weights = self._raised(_MARGIN * sizes)
        violation = float(weights @ point.residuals.violations)
        predicted = float(weights @ rows.violations(point.rows + point.jacobian @ step))
        slope = min(0.0, float(point.gradient @ step) + predicted - violation)
        noise = _MERIT_NOISE * (abs(point.objective) + float(weights @ scales.rows))
        bend = np.zeros_like(step)

        def change(objective: float, violations: Array) -> float:
            """Of the merit; differences first, since a large objective would swallow the rest."""
            return objective - point.objective + (float(weights @ violations) - violation)

        if full is not None:
            gained = change(full.objective, full.residuals.violations)
            if gained <= _SUFFICIENT_DECREASE * slope + noise:
                self._adapt_damping(program, step, 1.0)
                return full
            bend = self._bend(point, program, step, multipliers, full.rows)
        t = 1.0 if bend.any() else 0.5
        while t > _LEAST_FRACTION:
            z = self.move(point.z, t * step + t * t * bend)
            objective, values = rows.values(z)
            gained = change(objective, rows.violations(values))
            if gained < 0.0 and gained <= _SUFFICIENT_DECREASE * t * slope:
                self._adapt_damping(program, step, t)
                return rows.point(z, point.multipliers + t * (multipliers - point.multipliers))
            t *= _CONTRACTION if t > _SHORT_FRACTION else _FAST_CONTRACTION
        return None

    def _adapt_damping(self, program: QuadraticProgram, step: Array, fraction: float) -> None:
        """Let the next model be steeper if it took a short fraction of the step, else less steep.

        Where curvature changes fast (saturated losses), steps cut short zigzag.
        """
        if fraction < _SHORT:
            curvature = float(step @ program.hessian @ step) / float(step @ step)
            self.damping = max(10.0 * self.damping, curvature / fraction)
        elif fraction == 1.0:
            self.damping *= 0.1

    def _raised(self, sizes: Array) -> Array:
        """The merit function's weights for multipliers of these sizes."""
        self._decays -= 1  # a merit function that kept changing could let the iterates cycle
        kept = 0.5 * (self._weights + sizes) if self._decays >= 0 else self._weights
        weights: Array = np.minimum(np.maximum(sizes, kept), self.rows.dual_upper)
        return weights

    def _evaluated(self, z: Array, multipliers: Array) -> Point | None:
        try:
            return self.rows.point(z, multipliers)
        except NonFiniteError:  # the step left the functions' domain: a shorter one will not
            return None

    def _bend(
        self,
        point: Point,
        program: QuadraticProgram,
        step: Array,
        multipliers: Array,
        reached: Array,
    ) -> Array:
        """The second-order correction: what the rows' values at the full step add to it.

        One that is longer than the step corrects nothing of second order, and is left out.
        """
        if reached.size:
            curved = dataclasses.replace(program, residual=reached - point.jacobian @ step)
            answer = self.subproblems.solve(curved, multipliers)
            bend = answer.step - step
            if answer.status == "solved" and np.linalg.norm(bend) <= np.linalg.norm(step):
                return bend
        return np.zeros_like(step)

    def off_saddle(
        self, point: Point, hessian: Array, working: Indices, normals: Array
    ) -> Point | None:
        """A point of less merit along negative curvature; ``None`` if there is none."""
        found = negative_curvature(hessian, normals)
        if found is None:
            return None
        eigenvalue, direction = found
        weights = np.maximum(self._weights, np.abs(point.multipliers))
        merit = point.objective + float(weights @ point.residuals.violations)
        restore = np.linalg.pinv(point.jacobian[working])
        t = max(1.0, float(np.linalg.norm(point.z)))
        for _ in range(_HALVINGS):
            for sign in (1.0, -1.0):
                z = self.move(point.z, sign * t * direction)
                if working.size:
                    z = self.move(z, -restore @ self.rows.values(z)[1][working])
                objective, values = self.rows.values(z)
                reached = objective + float(weights @ self.rows.violations(values))
                if reached <= merit + 0.05 * t * t * eigenvalue:
                    return self.rows.point(z, point.multipliers)
            t *= 0.5
        return None
