"""Sequential quadratic programming with an l1 merit function: Newton's method for programs."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np

from bilevel.errors import NonFiniteError, ResponseError
from bilevel.newton.arrays import Array, Indices, largest
from bilevel.newton.complementarity import QuadraticProgram
from bilevel.newton.curvature import ConvexModel, convexify, negative_curvature
from bilevel.newton.kkt import Point, RowProgram, Scales
from bilevel.newton.quadratic import QuadraticAnswer, solve_quadratic

Stop = Literal["converged", "irregular", "inconsistent", "divergent", "stalled", "limit"]

# Residuals this small (relative to the cancelling terms) are rounding: no step improves them.
_ROUNDING = 1e-14
_SUFFICIENT_DECREASE = 1e-4
_CONTRACTION = 0.5
_HALVINGS = 40
# Below this fraction of a step, the next model is damped.
_SHORT = 0.25
# Factor by which the merit function's weights exceed the multipliers, without which a step on a
# linear model would not lessen it.
_MARGIN = 1.1
# Steps in which the merit function's weights may shrink.
_DECAYS = 10
_MERIT_NOISE = 10.0 * float(np.finfo(np.float64).eps)
_UNBOUNDED = 1e20
# Multipliers above this, in units of |gradient| / |Jacobian|, exist in rounding only.
_DIVERGENT = 1e10
_LEAST_JACOBIAN = 1e-3
_RAY_LENGTHS = (1e3, 1e6)
_RAY_GROWTH = 1e-6


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run ended and why.

    Attributes
    ----------
    point : Point
        The last iterate.
    stop : str
        ``"converged"``; ``"irregular"``, feasible to the restoration's tolerance but without
        multipliers; ``"inconsistent"``, the linearised constraints have no solution;
        ``"divergent"``, multipliers grow without bound; ``"stalled"``, no step lessens the merit
        function; ``"limit"``, out of iterations.
    error : float
        The largest residual relative to its scale.
    iterations, interior_point_solves : int
        As in :class:`~bilevel.newton.Answer`.
    """

    point: Point
    stop: Stop
    error: float
    iterations: int
    interior_point_solves: int


class SequentialQuadratic:
    r"""Minimise a :class:`RowProgram` from a point.

    Each iteration solves the quadratic program of the Lagrangian's (convexified) Hessian and the
    linearised rows, which is exact where the program is quadratic with affine rows. The full step
    is kept if it is a Newton step that halves the least error so far, or if it lessens

    .. math:: \varphi(z) + \sum_i \sigma_i [r_i(z)]_+

    sufficiently. Otherwise it is halved until it does, along an arc that a second-order correction
    bends towards the rows. The weights follow the multipliers by Powell's rule (which lets them
    shrink) for some steps, then only grow; up to :math:`\rho` where rows are elastic, which makes
    this the S-l1-QP method. After the tolerance is met one more step is taken, which squares the
    error at the price of one linear system.

    Source: Nocedal and Wright, Numerical Optimization (2006), sections 18.3 to 18.5.

    Parameters
    ----------
    rows : RowProgram
        What to minimise.
    tolerance : float
        Largest residual relative to its scale.
    max_iterations : int
        Largest number of steps.
    proximal : float
        Added to the diagonal of the model's Hessian. It chooses short steps where there are many
        solutions, and leaves the solutions as they are.
    """

    def __init__(
        self, rows: RowProgram, tolerance: float, max_iterations: int, proximal: float = 0.0
    ) -> None:
        self.rows = rows
        self.proximal = proximal
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self._interior_point_solves = 0
        self._weights = np.zeros(0)
        self._decays = _DECAYS
        self._damping = 0.0

    def run(self, point: Point) -> Outcome:
        """Iterate until converged or stuck.

        Raises
        ------
        ResponseError
            If the program is unbounded below.
        NonFiniteError
            If derivatives at an iterate are not finite.
        """
        rows = self.rows
        self._interior_point_solves = 0
        self._weights = np.abs(point.multipliers)
        self._decays = _DECAYS
        self._damping = 0.0
        floor = -_UNBOUNDED * max(1.0, abs(point.objective))
        ceiling = np.inf if rows.elastic else _DIVERGENT * unit_multiplier(point)
        error = rows.error(point.residuals, point.scales)
        least = np.inf
        iterations = 0
        # minimum: whether the curvature here is known to be a minimum's; settled: whether the
        # tolerance was met before the last step; informed: whether only multipliers were renewed.
        minimum = settled = informed = False

        def stopped(stop: Stop) -> Outcome:
            if error <= self.tolerance:
                stop = "converged"
            return Outcome(point, stop, error, iterations, self._interior_point_solves)

        while True:
            if error <= _ROUNDING or (settled and error <= self.tolerance):
                lower = None if minimum else self._leave_saddle(point)
                if lower is None:
                    return stopped("converged")
                point, settled = lower, False
            if iterations == self.max_iterations:
                return stopped("limit")
            hessian = rows.hessian(point)
            curvature = largest(np.abs(hessian) @ np.abs(point.z))
            scales = point.scales.bent(curvature)
            error = rows.error(point.residuals, scales)
            working = self._working(point)
            model = convexify(hessian, functools.partial(self._normals, point, working))
            minimum = model.newton
            if error <= _ROUNDING and minimum:
                continue
            settled = error <= self.tolerance
            iterations += 1
            program, answer = self._direction(point, model)
            if answer.status == "infeasible":
                return stopped("inconsistent")
            multipliers = answer.multipliers
            if model.change is not None:
                multipliers = multipliers.copy()
                multipliers[working] += model.multiplier_shift(answer.step)[: working.size]
            least = min(least, error)
            allowed = max(self.tolerance, _CONTRACTION * least) if minimum else self.tolerance
            following = self._search(point, scales, program, answer, multipliers, allowed)
            if following is None:
                if settled and not minimum:
                    continue
                if settled or informed:
                    return stopped("stalled")
                # The constraints' curvature, weighed by the multipliers just found, may be all
                # that this model lacks (a linear objective over a curved set).
                informed = True
                point = rows.point(point.z, multipliers)
                error = rows.error(point.residuals, point.scales)
                continue
            informed = False
            after = rows.error(following.residuals, following.scales.bent(curvature))
            if after >= error and np.array_equal(following.z, point.z):
                return stopped("stalled")
            if settled and minimum and after >= error:
                return stopped("converged")
            if not (settled or _affine(point, following)):
                minimum = False  # with other multipliers, the curvature may be another
            point, error = following, after
            if largest(point.multipliers) > ceiling:
                return stopped("divergent")
            if point.objective < floor:
                raise ResponseError(
                    f"The program is unbounded below: its objective reached {point.objective:.3g} "
                    f"after {iterations} iterations and still falls. Bound the variables, or add a "
                    "strongly convex term to the objective."
                )

    def _working(self, point: Point) -> Indices:
        """Indices of the rows whose multiplier is inside its interval: they hold with equality."""
        inside = (point.multipliers > self.rows.dual_lower) & (
            point.multipliers < self.rows.dual_upper
        )
        return np.flatnonzero(inside)

    def _normals(self, point: Point, working: Indices) -> Array:
        held = np.flatnonzero(point.residuals.bound_mu)
        normals = np.zeros((working.size + held.size, point.z.size))
        normals[: working.size] = point.jacobian[working]
        normals[working.size + np.arange(held.size), held] = 1.0
        return normals

    def _direction(
        self, point: Point, model: ConvexModel
    ) -> tuple[QuadraticProgram, QuadraticAnswer]:
        """Solve the quadratic model, with a proximal term where it is unbounded."""
        weight = self.proximal + self._damping
        matrix = model.matrix + weight * np.eye(point.z.size) if weight else model.matrix
        program = self.rows.quadratic(point, matrix)
        answer = solve_quadratic(program, point.multipliers)
        self._interior_point_solves += answer.interior
        proximal = largest(point.gradient) / point.scales.reach
        while answer.status == "unbounded":
            self._check_ray(point, answer.step)
            steeper = matrix + proximal * np.eye(point.z.size)
            program = dataclasses.replace(program, hessian=steeper)
            answer = solve_quadratic(program, point.multipliers)
            self._interior_point_solves += answer.interior
            proximal *= 100.0
        return program, answer

    def _check_ray(self, point: Point, ray: Array) -> None:
        """Raise if the program itself falls without bound along a ray of its model."""
        slope = float(point.gradient @ ray)
        before = point.residuals.violations
        allowed = _RAY_GROWTH * np.maximum(1.0, np.abs(point.jacobian).max(axis=1, initial=0.0))
        for length in _RAY_LENGTHS:
            t = length * point.scales.reach
            objective, values = self.rows.values(self._moved(point.z, t * ray))
            falls = math.isfinite(objective) and objective <= point.objective + 0.1 * t * slope
            if not (falls and np.all(self.rows.violations(values) <= before + t * allowed)):
                return
        raise ResponseError(
            f"The program is unbounded below: its objective falls at rate {-slope:.3g} along a "
            f"feasible ray from z = {np.array2string(point.z, precision=4, threshold=8)}. Bound "
            "the variables, or add a strongly convex term to the objective."
        )

    def _search(
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
        full = self._evaluated(self._moved(point.z, step), multipliers)
        if full is not None and rows.error(full.residuals, scales) <= allowed:
            self._damping = 0.0
            return full

        # The model's own multipliers, without those of its convexification, make it descend.
        sizes = np.maximum(np.abs(multipliers), np.abs(answer.multipliers))
        self._weights = weights = self._raised(_MARGIN * sizes)
        violation = float(weights @ point.residuals.violations)
        predicted = float(weights @ rows.violations(point.rows + point.jacobian @ step))
        slope = min(0.0, float(point.gradient @ step) + predicted - violation)
        merit = point.objective + violation
        noise = _MERIT_NOISE * (abs(point.objective) + float(weights @ scales.rows))
        bend = np.zeros_like(step)
        if full is not None:
            reached = full.objective + float(weights @ full.residuals.violations)
            if reached <= merit + _SUFFICIENT_DECREASE * slope + noise:
                self._adapt_damping(program, step, 1.0)
                return full
            bend = self._bend(point, program, step, multipliers, full.rows)
        t = 1.0 if bend.any() else 0.5
        for _ in range(_HALVINGS):
            z = self._moved(point.z, t * step + t * t * bend)
            objective, values = rows.values(z)
            reached = objective + float(weights @ rows.violations(values))
            if reached < merit and reached <= merit + _SUFFICIENT_DECREASE * t * slope:
                self._adapt_damping(program, step, t)
                return rows.point(z, point.multipliers + t * (multipliers - point.multipliers))
            t *= 0.5
        return None

    def _adapt_damping(self, program: QuadraticProgram, step: Array, fraction: float) -> None:
        """Let the next model be steeper if it took a short fraction of the step, else less steep.

        Where curvature changes fast (saturated losses), steps cut short zigzag.
        """
        if fraction < _SHORT:
            curvature = float(step @ program.hessian @ step) / float(step @ step)
            self._damping = max(10.0 * self._damping, curvature / fraction)
        elif fraction == 1.0:
            self._damping *= 0.1

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
        """The second-order correction: what the rows' values at the full step add to it."""
        if reached.size:
            curved = dataclasses.replace(program, residual=reached - point.jacobian @ step)
            answer = solve_quadratic(curved, multipliers)
            self._interior_point_solves += answer.interior
            if answer.status == "solved":
                return answer.step - step
        return np.zeros_like(step)

    def _moved(self, z: Array, step: Array) -> Array:
        lower, upper = self.rows.lower, self.rows.upper
        moved = np.where(step <= lower - z, lower, z + step)  # z + (lower - z) may miss by rounding
        return np.where(step >= upper - z, upper, moved)

    def _leave_saddle(self, point: Point) -> Point | None:
        """A point of less merit along negative curvature; ``None`` if there is none."""
        working = self._working(point)
        normals = self._normals(point, working)
        found = negative_curvature(self.rows.hessian(point), normals)
        if found is None:
            return None
        eigenvalue, direction = found
        weights = np.maximum(self._weights, np.abs(point.multipliers))
        merit = point.objective + float(weights @ point.residuals.violations)
        restore = np.linalg.pinv(point.jacobian[working])
        t = max(1.0, float(np.linalg.norm(point.z)))
        for _ in range(_HALVINGS):
            for sign in (1.0, -1.0):
                z = self._moved(point.z, sign * t * direction)
                if working.size:
                    z = self._moved(z, -restore @ self.rows.values(z)[1][working])
                objective, values = self.rows.values(z)
                reached = objective + float(weights @ self.rows.violations(values))
                if reached <= merit + 0.05 * t * t * eigenvalue:
                    return self.rows.point(z, point.multipliers)
            t *= 0.5
        return None


def unit_multiplier(point: Point) -> float:
    """The size of multipliers that the magnitudes of first derivatives suggest."""
    gradient = largest(point.gradient) or 1.0
    jacobian = float(np.abs(point.jacobian).max(initial=0.0))
    return gradient / min(1.0, max(jacobian, _LEAST_JACOBIAN))


def _affine(point: Point, following: Point) -> bool:
    """Whether the rows are affine as far as a step shows, so that multipliers bend nothing."""
    if point.rows.size == 0:
        return True
    moved = not np.array_equal(point.z, following.z)
    return moved and np.array_equal(point.jacobian, following.jacobian)
