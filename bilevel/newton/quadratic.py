"""Convex quadratic programs: from the warm start's active set, else by an interior point."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.newton.arrays import Array
from bilevel.newton.complementarity import ComplementaritySystem, QuadraticProgram
from bilevel.newton.interior_point import Status, interior_point

# Passes of the active-set method before the interior point; those that succeed rarely need more.
_WARM_PASSES = 12
_POLISH_PASSES = 6
# Relative natural residual at which an active set is taken as the solution's.
_ACCEPTED = 1e-11
_SOLVED = 1e-6


@dataclasses.dataclass(frozen=True)
class QuadraticAnswer:
    """A step, its multipliers, and how they were found.

    Attributes
    ----------
    status : str
        ``"solved"``, ``"inaccurate"``, ``"infeasible"`` or ``"unbounded"``.
    step : (n,) array
        The minimiser d, or a ray of unbounded descent (of maximum norm 1), or zero.
    multipliers : (k,) array
        Those of the rows (zero unless solved or inaccurate).
    interior : bool
        Whether the interior-point method was needed.
    """

    status: Status
    step: Array
    multipliers: Array
    interior: bool


def solve_quadratic(program: QuadraticProgram, multipliers: Array) -> QuadraticAnswer:
    """Solve a convex quadratic program from ``d = 0`` and a guess of its multipliers.

    The active set that the guess predicts is tried first, at the price of one linear system if it
    is the solution's. Otherwise Clarabel's solution predicts it, and solving for that active set
    polishes the solution to rounding; the polish is kept if it lessens the residual.
    """
    system = ComplementaritySystem(program)
    start = system.scaled(np.zeros_like(program.gradient), multipliers)
    unknown, residual = system.exchange(start, system.active_set(start), _WARM_PASSES)
    if residual <= _ACCEPTED:
        return QuadraticAnswer("solved", *system.unscaled(unknown), interior=False)
    found = interior_point(system)
    if found.status == "infeasible":
        return QuadraticAnswer("infeasible", *system.unscaled(found.unknown), interior=True)
    if found.status == "unbounded":
        ray, multipliers = system.unscaled(found.unknown)
        return QuadraticAnswer("unbounded", ray / np.abs(ray).max(), multipliers, interior=True)
    unknown = np.minimum(np.maximum(found.unknown, system.lower), system.upper)
    residual = system.residual(unknown)
    polished, polished_residual = system.exchange(
        unknown, system.active_set(found.unknown, interior=True), _POLISH_PASSES
    )
    if polished_residual < residual:
        unknown, residual = polished, polished_residual
    status: Status = "solved" if residual <= _SOLVED else "inaccurate"
    return QuadraticAnswer(status, *system.unscaled(unknown), interior=True)
