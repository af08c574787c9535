"""Clarabel's interior-point method on a scaled complementarity system."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy import sparse

from bilevel.newton.arrays import Array
from bilevel.newton.complementarity import ComplementaritySystem

Status = Literal["solved", "inaccurate", "infeasible", "unbounded"]

_TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
    """What the interior-point method found.

    Attributes
    ----------
    status : str
        ``"inaccurate"`` if it stopped early; ``unknown`` is then its last iterate.
    unknown : (n + k,) array
        The scaled solution w; if unbounded, the scaled ray of descent, with zeros for multipliers.
    """

    status: Status
    unknown: Array


def interior_point(system: ComplementaritySystem) -> InteriorPoint:
    r"""Solve the convex quadratic program behind ``system``.

    An elastic row gets slack variables, :math:`J_i d + r_i = s^+ - s^-`, priced at the ends of its
    multiplier interval.

    Source: Goulart and Chen 2024, arXiv:2405.12762 (Clarabel).
    """
    import clarabel  # here, since answers from a warm start never need it

    n = system.size
    jacobian, residual = system.matrix[n:, :n], system.offset[n:]
    dual_lower, dual_upper = system.lower[n:], system.upper[n:]
    over = np.flatnonzero(np.isfinite(dual_upper))
    under = np.flatnonzero(np.isfinite(dual_lower) & (dual_lower < 0.0))
    slacks = np.zeros((residual.size, over.size + under.size))
    slacks[over, np.arange(over.size)] = -1.0
    slacks[under, over.size + np.arange(under.size)] = 1.0
    prices = np.concatenate((dual_upper[over], -dual_lower[under]))

    unit = 1.0 / max(1.0, float(np.abs(system.offset[:n]).max(initial=0.0)))
    size = n + prices.size
    hessian = np.zeros((size, size))
    hessian[:n, :n] = unit * np.triu(system.matrix[:n, :n])
    cost = unit * np.concatenate((system.offset[:n], prices))

    lower = np.concatenate((system.lower[:n], np.zeros(prices.size)))
    upper = np.concatenate((system.upper[:n], np.full(prices.size, np.inf)))
    pinned = lower == upper
    identity = np.eye(size)
    rows = np.hstack((jacobian, slacks))
    equal = dual_lower < 0.0
    from_below = np.isfinite(lower) & ~pinned
    from_above = np.isfinite(upper) & ~pinned
    left = np.vstack(
        (rows[equal], identity[pinned], rows[~equal], -identity[from_below], identity[from_above])
    )
    right = np.concatenate(
        (-residual[equal], lower[pinned], -residual[~equal], -lower[from_below], upper[from_above])
    )
    equations = int(equal.sum() + pinned.sum())
    cones = [clarabel.ZeroConeT(equations), clarabel.NonnegativeConeT(right.size - equations)]

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _TOLERANCE
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(hessian), cost, sparse.csc_matrix(left), right, cones, settings
    ).solve()

    states = clarabel.SolverStatus
    primal = np.asarray(solution.x)[:n]
    if solution.status in (states.PrimalInfeasible, states.AlmostPrimalInfeasible):
        return InteriorPoint("infeasible", np.zeros(n + residual.size))
    if solution.status in (states.DualInfeasible, states.AlmostDualInfeasible):
        return InteriorPoint("unbounded", np.concatenate((primal, np.zeros(residual.size))))
    dual = np.asarray(solution.z) / unit
    multipliers = np.empty(residual.size)
    multipliers[equal] = dual[: int(equal.sum())]
    multipliers[~equal] = dual[equations : equations + int((~equal).sum())]
    status: Status = "solved" if solution.status == states.Solved else "inaccurate"
    return InteriorPoint(status, np.concatenate((primal, multipliers)))
