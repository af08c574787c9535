"""Whether the objectives depend on the variables that they are minimised over."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import DependenceError
from bilevel.evaluation import Evaluation
from bilevel.gradients import DEPENDENCE_ADVICE
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.variables import Level


def require_dependence(problem: BilevelProblem, state: State) -> None:
    """Refuse objectives without data that ignore the variable they are minimised over.

    First-order steps notice by the gradients that are missing; where a step only sees values and
    derivatives as arrays, a zero gradient looks like a solution.
    """
    x, y = state.upper.tree, state.lower.tree
    f, g = Evaluation(problem, state).pair(through_x=True)
    constraints = (
        problem.inequalities(x, y), problem.equalities(x, y), problem.upper_inequalities(x, y)
    )  # fmt: skip
    everything = [f, g, *(each.sum() for each in constraints if each is not None)]
    _require(_depends([g], state.lower), "lower (g) does not depend on y")
    _require(
        _depends([f], state.upper) or _depends([f], state.lower),
        "upper (f) depends on neither x nor y",
    )
    _require(
        not state.upper.leaves or _depends(everything, state.upper),
        "nothing in the problem depends on x",
    )


def require_dependence_seen(evaluations: list[Evaluation]) -> None:
    """The same for the evaluations of a first-order step, which have met the graphs."""
    seen = [(each.lower_depends, each.upper_depends) for each in evaluations]
    lower, upper = (any(flags) for flags in zip(*seen, strict=True))
    _require(lower, "lower (g) does not depend on y")
    _require(upper, "upper (f) depends on neither x nor y")


def _require(dependent: bool, otherwise: str) -> None:
    if not dependent:
        raise DependenceError(f"{otherwise}. {DEPENDENCE_ADVICE}")


def _depends(values: list[Tensor], level: Level) -> bool:
    """Whether a graph leads from any of the values to any of the level's leaves."""
    return any(
        part is not None
        for value in values
        if value.requires_grad and level.leaves
        for part in torch.autograd.grad(value, level.leaves, retain_graph=True, allow_unused=True)
    )
