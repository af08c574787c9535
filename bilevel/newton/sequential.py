"""Sequential quadratic programming with an l1 merit function: Newton's method for programs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from bilevel.errors import ResponseError
from bilevel.newton.arrays import Array, Indices, largest
from bilevel.newton.curvature import convexify
from bilevel.newton.kkt import Point, RowProgram
from bilevel.newton.line_search import LineSearch
from bilevel.newton.subproblems import Subproblems

Stop = Literal["converged", "irregular", "inconsistent", "divergent", "stalled", "limit"]

# Residuals this small (relative to the cancelling terms) are rounding: no step improves them.
_ROUNDING = 1e-14
# Decrease of the least error that lets a full Newton step pass unseen by the merit function.
_LESS = 0.5
_UNBOUNDED = 1e20
# Multipliers above this, in units of |gradient| / |Jacobian|, exist in rounding only.
_DIVERGENT = 1e10
_LEAST_JACOBIAN = 1e-3


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

    sufficiently. Otherwise it is shortened until it does, along an arc that a second-order
    correction bends towards the rows (:class:`~bilevel.newton.line_search.LineSearch`). The weights
    follow the multipliers, up to :math:`\rho` where rows are elastic, which makes this the S-l1-QP
    method. After the tolerance is met one more step is taken, which squares the error at the price
    of one linear system.

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
        self._subproblems = Subproblems(rows, self._moved)
        self._line_search = LineSearch(rows, self._subproblems)

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
        self._subproblems.interior_point_solves = 0
        self._line_search.start(point)
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
            solves = self._subproblems.interior_point_solves
            return Outcome(point, stop, error, iterations, solves)

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
            weight = self.proximal + self._line_search.damping
            matrix = model.matrix + weight * np.eye(point.z.size) if weight else model.matrix
            program, answer = self._subproblems.direction(point, matrix)
            if answer.status == "infeasible":
                return stopped("inconsistent")
            multipliers = answer.multipliers
            if model.change is not None:
                multipliers = multipliers.copy()
                multipliers[working] += model.multiplier_shift(answer.step)[: working.size]
            least = min(least, error)
            allowed = max(self.tolerance, _LESS * least) if minimum else self.tolerance
            following = self._line_search.along(
                point, scales, program, answer, multipliers, allowed
            )
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
            if self._crawls(point, error):
                return stopped("stalled")
            if largest(point.multipliers) > ceiling:
                return stopped("divergent")
            if point.objective < floor:
                raise ResponseError(
                    f"The program is unbounded below: its objective reached {point.objective:.3g} "
                    f"after {iterations} iterations and still falls. Bound the variables, or add a "
                    "strongly convex term to the objective."
                )

    def _crawls(self, point: Point, error: float) -> bool:
        """Whether to stop for want of progress; never, where a tolerance has to be met."""
        return False

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

    def _moved(self, z: Array, step: Array) -> Array:
        lower, upper = self.rows.lower, self.rows.upper
        moved = np.where(step <= lower - z, lower, z + step)  # z + (lower - z) may miss by rounding
        return np.where(step >= upper - z, upper, moved)

    def _leave_saddle(self, point: Point) -> Point | None:
        working = self._working(point)
        normals = self._normals(point, working)
        return self._line_search.off_saddle(point, self.rows.hessian(point), working, normals)


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
