"""The quadratic programs of a sequential method, and proof of a program without a minimum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from bilevel.errors import ResponseError
from bilevel.newton.arrays import Array, largest
from bilevel.newton.complementarity import QuadraticProgram
from bilevel.newton.kkt import Point, RowProgram
from bilevel.newton.quadratic import QuadraticAnswer, solve_quadratic

_RAY_LENGTHS = (1e3, 1e6)
_RAY_GROWTH = 1e-6


class Subproblems:
    """Solves a run's quadratic models; ``move`` adds a step to a point within the bounds.

    Attributes
    ----------
    interior_point_solves : int
        How many took the interior-point method.
    """

    def __init__(self, rows: RowProgram, move: Callable[[Array, Array], Array]) -> None:
        self.rows = rows
        self.move = move
        self.interior_point_solves = 0

    def solve(self, program: QuadraticProgram, multipliers: Array) -> QuadraticAnswer:
        """Solve one, from a guess of its multipliers."""
        answer = solve_quadratic(program, multipliers)
        self.interior_point_solves += answer.interior
        return answer

    def direction(self, point: Point, matrix: Array) -> tuple[QuadraticProgram, QuadraticAnswer]:
        """The model with Hessian ``matrix`` and its solution, with a proximal term where unbounded.

        Raises
        ------
        ResponseError
            If the program itself is unbounded below.
        """
        program = self.rows.quadratic(point, matrix)
        answer = self.solve(program, point.multipliers)
        proximal = largest(point.gradient) / point.scales.reach
        while answer.status == "unbounded":
            self._check_ray(point, answer.step)
            steeper = matrix + proximal * np.eye(point.z.size)
            program = dataclasses.replace(program, hessian=steeper)
            answer = self.solve(program, point.multipliers)
            proximal *= 100.0
        return program, answer

    def _check_ray(self, point: Point, ray: Array) -> None:
        """Raise if the program itself falls without bound along a ray of its model."""
        slope = float(point.gradient @ ray)
        before = point.residuals.violations
        allowed = _RAY_GROWTH * np.maximum(1.0, np.abs(point.jacobian).max(axis=1, initial=0.0))
        for length in _RAY_LENGTHS:
            t = length * point.scales.reach
            objective, values = self.rows.values(self.move(point.z, t * ray))
            falls = math.isfinite(objective) and objective <= point.objective + 0.1 * t * slope
            if not (falls and np.all(self.rows.violations(values) <= before + t * allowed)):
                return
        raise ResponseError(
            f"The program is unbounded below: its objective falls at rate {-slope:.3g} along a "
            f"feasible ray from z = {np.array2string(point.z, precision=4, threshold=8)}. Bound "
            "the variables, or add a strongly convex term to the objective."
        )
