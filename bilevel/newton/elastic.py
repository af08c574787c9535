"""Descent on a program with relaxed constraints, for outer loops that go on from its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bilevel.newton.arrays import Array
from bilevel.newton.kkt import Point, RowProgram
from bilevel.newton.program import Program
from bilevel.newton.sequential import SequentialQuadratic
from bilevel.newton.solver import feasible_start

# Steps without progress after which a descent ends, and what is progress: a lower merit, relative
# to it, or a smaller error.
_PATIENCE = 8
_LOWER, _SMALLER = 1e-8, 0.5


@dataclass(frozen=True)
class Descent:
    """Where a descent ended.

    Attributes
    ----------
    z : (n,) array
        The last iterate.
    merit : float
        Its objective plus the penalty times its violation.
    violation : float
        Its total violation.
    limited : bool
        Whether it ended at the iteration limit.
    """

    z: Array
    merit: float
    violation: float
    limited: bool


def minimise_elastic(
    program: Program,
    z0: Array,
    penalty: float,
    tolerance: float,
    max_iterations: int,
    settle: Callable[[Array], Array],
) -> Descent:
    """Descend as far as is worth while, with no error that has to be reached.

    ``settle`` is applied to every trial point before it is judged; it may move those variables that
    it can minimise over exactly, which keeps steps long in curved narrow valleys.
    """
    z = settle(feasible_start(program, z0))
    linearisation = program.evaluate(z)
    m, p = linearisation.inequalities.size, linearisation.equalities.size
    rows = RowProgram(program, m, p, penalty)
    point = rows.point(z, np.zeros(m + p), linearisation)
    outcome = _Settled(rows, tolerance, max_iterations, settle).run(point)
    violation = float(rows.violations(outcome.point.rows).sum())
    merit = outcome.point.objective + penalty * violation
    return Descent(outcome.point.z, merit, violation, outcome.stop == "limit")


class _Settled(SequentialQuadratic):
    def __init__(
        self,
        rows: RowProgram,
        tolerance: float,
        max_iterations: int,
        settle: Callable[[Array], Array],
    ) -> None:
        super().__init__(rows, tolerance, max_iterations)
        self.settle = settle
        self._best_merit = self._least_error = math.inf
        self._idle = 0

    def _crawls(self, point: Point, error: float) -> bool:
        merit = point.objective + self.rows.penalty * float(point.residuals.violations.sum())
        if merit < self._best_merit - _LOWER * (1.0 + abs(merit)):
            self._best_merit, self._idle = merit, 0
        if error < _SMALLER * self._least_error:
            self._least_error, self._idle = error, 0
        self._idle += 1
        return self._idle > _PATIENCE

    def _moved(self, z: Array, step: Array) -> Array:
        return self.settle(super()._moved(z, step))
