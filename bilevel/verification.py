"""The residuals of a final point, recomputed without regard to how it was reached."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bilevel.calculus import Array
from bilevel.distributed import mean_values
from bilevel.domains.sharding import is_sharded
from bilevel.errors import InfeasibleError, NonFiniteError, NotApplicableError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response, fresh_track
from bilevel.responses.exact import EXACT_LIMIT, Exact, tightest
from bilevel.state import State
from bilevel.stationarity import Stationarity, fresh_stationarity
from bilevel.variables import Level


@dataclass(frozen=True)
class Residuals:
    """Objective values and residuals at a point; NaN where one could not be measured.

    ``measured`` is the stationarity with its scale, where fresh responses gave it, and ``original``
    the original response y_g, fresh or else tracked.
    """

    upper_value: float
    lower_value: float
    lower_gap: float
    constraint_violation: float
    stationarity: float
    notes: list[str]
    measured: Stationarity | None = None
    original: list[torch.Tensor] | None = None


def verify(
    problem: BilevelProblem, state: State, penalty: float, batches: tuple[Any, Any] = (None, None)
) -> Residuals:
    """Residuals at the state's (x, y), once y has followed the last step in x.

    The gap is measured against a fresh exact response where the problem is deterministic and has
    one, else against the tracked y_g on the last batch, and is NaN without either, or where the
    fresh response could not be solved.
    """
    evaluation = Evaluation(problem, state, *batches)
    if state.response.exact and state.outer.moves_x_last:
        _follow(problem, state, penalty, evaluation)
    with torch.no_grad():
        plain = Evaluation(problem, state, *batches, augmented=False)
        f, g = (float(value) for value in plain.pair())
    violation = constraint_violation(problem, state)
    notes: list[str] = []
    gap, stationarity = math.nan, float(state.record.get("stationarity", math.nan))
    measured: Stationarity | None = None
    original: list[torch.Tensor] | None = None
    wrapped = state.upper.wrapped or state.lower.wrapped  # so without second derivatives
    response = None if problem.uses_batches or wrapped else verifying_response(problem, state)
    tracked = response is None or any(batch is not None for batch in batches)
    if not tracked:
        assert response is not None
        try:
            with restoring(state.lower):
                fresh = fresh_value(problem, state, response)
                gap, original = g - fresh.value, fresh.response
                measured = fresh_stationarity(problem, state, response, penalty, fresh.gradient)
                stationarity = measured.residual
        except NotApplicableError as error:
            tracked = original is None
            what = "no fresh response verifies it" if tracked else "stationarity was not measured"
            notes.append(f"{what}: {error}")
        except (InfeasibleError, ResponseError, NonFiniteError) as error:
            notes.append(f"not verified, a response at the final x could not be solved: {error}")
    if tracked and state.original is not None:
        with torch.no_grad(), state.at_original():
            gap = g - float(evaluation.lower())
        original = state.original.values
    elif tracked:
        notes.append(
            "the lower gap is not known: no exact response was at hand, and no tracked one"
        )
    means = mean_values({"f": f, "g": g, "gap": gap})
    return Residuals(
        means["f"], means["g"], means["gap"], violation, stationarity, notes, measured, original
    )


def verifying_response(problem: BilevelProblem, state: State) -> Response | None:
    """The exact response that residuals rest on; ``None`` where the lower level is too large."""
    if problem.lower_response is not None and problem.lower_response.exact:
        return problem.lower_response
    if state.response.exact and not isinstance(state.response, Exact):
        return state.response
    sharded = any(is_sharded(leaf) for leaf in state.upper.leaves + state.lower.leaves)
    return tightest(state.lower) if state.lower.size <= EXACT_LIMIT and not sharded else None


@dataclass(frozen=True)
class FreshValue:
    """v(x), ∇v(x) and the original response y_g, as the leaves of y."""

    value: float
    gradient: Array
    response: list[torch.Tensor]


def fresh_value(problem: BilevelProblem, state: State, response: Response) -> FreshValue:
    """The value function at x, the lesser of what y and the tracked y_g lead to.

    Leaves y as it was.
    """
    evaluation = Evaluation(problem, state)
    reached = state.lower.values()
    starts = [reached]
    if state.original is not None and state.original.values is not None:
        starts.append(state.original.values)
    answers = []
    for start in starts:
        state.lower.assign(start)
        track = fresh_track(response, problem, state)
        response.update(problem, state, track, 0.0, [evaluation])
        answers.append(FreshValue(*lagrangian(evaluation, track), state.lower.values()))
    state.lower.assign(reached)
    return min(answers, key=lambda answer: answer.value)


def _follow(problem: BilevelProblem, state: State, penalty: float, evaluation: Evaluation) -> None:
    """Solve for y_γ where x has come to be; where that fails, y stays, with its residuals."""
    held = state.lower.values()
    try:
        state.response.update(problem, state, state.perturbed, 1.0 / penalty, [evaluation])
    except (InfeasibleError, ResponseError, NonFiniteError):
        state.lower.assign(held)


@contextmanager
def restoring(level: Level) -> Iterator[None]:
    """Put a level's leaves back afterwards."""
    held = level.values()
    try:
        yield
    finally:
        level.assign(held)


@torch.no_grad()
def constraint_violation(problem: BilevelProblem, state: State) -> float:
    """Largest of 0, c, |h|, C and the distances of x and y to their domains."""
    x, y = state.upper.tree, state.lower.tree
    worst = [0.0]
    for values in (problem.inequalities(x, y), problem.upper_inequalities(x, y)):
        if values is not None and len(values):
            worst.append(float(values.max()))
    equalities = problem.equalities(x, y)
    if equalities is not None and len(equalities):
        worst.append(float(equalities.abs().max()))
    for level in (state.upper, state.lower):
        for leaf, domain in zip(level.leaves, level.domains, strict=True):
            worst.append(domain.distance(leaf.detach()))
    return math.nan if any(map(math.isnan, worst)) else max(worst)
