"""The path of solutions as the penalty grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bilevel.errors import OptionError
from bilevel.problem import BilevelProblem
from bilevel.schedules import Constant
from bilevel.solution import Solution
from bilevel.solvers.base import PenaltySolver
from bilevel.solvers.blocc import BLOCC
from bilevel.trees import Tree, named_leaves
from bilevel.variables import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PenaltyPath:
    r"""Solutions of the penalised problem for one penalty after the other.

    For global minimisers f and F_γ grow with γ towards the bilevel optimum from below, and the gap
    falls, as :math:`\gamma^{-2}` where the problem is regular. Where the gap stays, or f jumps, the
    path has changed its valley, or the lower level has no unique solution.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a penalty: ``penalty``, ``upper_value`` f(x, y_γ), ``lower_gap`` g(x, y_γ) − v(x),
        ``penalised_value`` F_γ = f + γ · gap, ``distance`` of x to the row before it,
        ``constraint_violation``, ``stationarity``, ``status``.
    solutions : tuple of Solution
        The same as solutions; x and y that are parameters hold the last one's values in all.
    """

    table: pd.DataFrame
    solutions: tuple[Solution, ...] = field(repr=False)

    def plot(self) -> Figure:
        """Draw f, F_γ and the lower gap against γ."""
        from bilevel.plotting import plot_penalty_path

        return plot_penalty_path(self.table)

    def __str__(self) -> str:
        return self.table.to_string(index=False, float_format=lambda value: f"{value:.6g}")


def penalty_path(
    problem: BilevelProblem,
    x0: Tree,
    y0: Tree,
    penalties: Sequence[float],
    solver: PenaltySolver | None = None,
    **options: Any,
) -> PenaltyPath:
    """Solve for each penalty, each from where the last one ended.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    x0, y0 : tree of tensors
        Start of the first solve.
    penalties : sequence of float
        Values of γ, usually increasing.
    solver : PenaltySolver, optional
        Solves at each penalty, which takes the place of its own; ``BLOCC()`` where not given.
    **options
        Of the solver's ``solve``, such as ``max_steps``.

    Raises
    ------
    OptionError
        If there is no penalty, or one is not positive.
    BilevelError
        What the solver raises.
    """
    values = [Constant(penalty).value for penalty in penalties]
    if not values:
        raise OptionError("penalties is empty, expected at least one positive number")
    solver = BLOCC() if solver is None else solver
    x, y = x0, y0
    rows: list[dict[str, Any]] = []
    solutions: list[Solution] = []
    for penalty in values:
        before = _vector(x)
        solution = replace(solver, penalty=penalty).solve(problem, x, y, **options)
        x, y = solution.x, solution.y
        rows.append(
            {
                "penalty": penalty,
                "upper_value": solution.upper_value,
                "lower_gap": solution.lower_gap,
                "penalised_value": solution.upper_value + penalty * solution.lower_gap,
                "distance": float(np.linalg.norm(_vector(x) - before)) if rows else np.nan,
                "constraint_violation": solution.constraint_violation,
                "stationarity": solution.stationarity,
                "status": str(solution.status),
            }
        )
        solutions.append(solution)
    return PenaltyPath(pd.DataFrame(rows), tuple(solutions))


def _vector(x: Tree) -> np.ndarray:
    return flatten([leaf for _, leaf in named_leaves(x, "x")])
