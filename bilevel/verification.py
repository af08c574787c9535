"""The residuals of a final point, recomputed without regard to how it was reached."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bilevel.calculus import Array, gradient
from bilevel.distributed import mean_values
from bilevel.domains.sharding import is_sharded
from bilevel.errors import InfeasibleError, NonFiniteError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.program import joint_program
from bilevel.responses.base import Response
from bilevel.responses.exact import EXACT_LIMIT, Exact, tightest
from bilevel.state import State, Track
from bilevel.variables import Level, unflatten

#: Constraints within this distance of equality count as active.
_ACTIVE = 1e-6


@dataclass(frozen=True)
class Residuals:
    """Objective values and residuals at a point; NaN where one could not be measured."""

    upper_value: float
    lower_value: float
    lower_gap: float
    constraint_violation: float
    stationarity: float
    notes: list[str]


def verify(
    problem: BilevelProblem, state: State, penalty: float, batches: tuple[Any, Any] = (None, None)
) -> Residuals:
    """Residuals at the state's (x, y), once y has followed the last step in x.

    The gap is measured against a fresh exact response where the problem is deterministic and has
    one, else against the tracked y_g on the last batch, and is NaN without either.
    """
    evaluation = Evaluation(problem, state, *batches)
    if state.response.exact and state.outer.moves_x_last:
        _follow(problem, state, penalty, evaluation)
    with torch.no_grad():
        f, g = (float(value) for value in evaluation.pair())
    violation = constraint_violation(problem, state)
    notes: list[str] = []
    gap, stationarity = math.nan, float(state.record.get("stationarity", math.nan))
    wrapped = state.upper.wrapped or state.lower.wrapped  # so without second derivatives
    response = None if problem.uses_batches or wrapped else verifying_response(problem, state)
    if response is not None and all(batch is None for batch in batches):
        try:
            with restoring(state.lower):
                value, slope = fresh_value(problem, state, response)
                gap = g - value
                stationarity = fresh_stationarity(problem, state, response, penalty, slope)
        except (InfeasibleError, ResponseError, NonFiniteError) as error:
            notes.append(f"not verified, a response at the final x could not be solved: {error}")
    elif state.original is not None:
        with torch.no_grad(), state.at_original():
            gap = g - float(evaluation.lower())
    else:
        notes.append(
            "the lower gap is not known: no exact response was at hand, and no tracked one"
        )
    means = mean_values({"f": f, "g": g, "gap": gap})
    return Residuals(means["f"], means["g"], means["gap"], violation, stationarity, notes)


def verifying_response(problem: BilevelProblem, state: State) -> Response | None:
    """The exact response that residuals rest on; ``None`` where the lower level is too large."""
    if problem.lower_response is not None and problem.lower_response.exact:
        return problem.lower_response
    if state.response.exact and not isinstance(state.response, Exact):
        return state.response
    sharded = any(is_sharded(leaf) for leaf in state.upper.leaves + state.lower.leaves)
    return tightest(state.lower) if state.lower.size <= EXACT_LIMIT and not sharded else None


def fresh_value(problem: BilevelProblem, state: State, response: Response) -> tuple[float, Array]:
    """v(x) and ∇v(x), the lesser of what y and the tracked y_g lead to; moves y's leaves."""
    evaluation = Evaluation(problem, state)
    reached = state.lower.values()
    starts = [reached]
    if state.original is not None and state.original.values is not None:
        starts.append(state.original.values)
    answers = []
    for start in starts:
        state.lower.assign(start)
        track = Track()
        response.update(problem, state, track, 0.0, [evaluation])
        answers.append(lagrangian(evaluation, track))
    state.lower.assign(reached)
    return min(answers, key=lambda answer: answer[0])


def fresh_stationarity(
    problem: BilevelProblem,
    state: State,
    response: Response,
    penalty: float,
    value_gradient: Array,
) -> float:
    """The ``stationarity`` of a :class:`~bilevel.Solution`; moves y's leaves.

    Where an outer step ends at points in (x, y) whose multipliers need not be unique, as with upper
    constraints, those that fit best are found for (x, y).
    """
    if not state.upper.leaves:
        return 0.0
    if problem.upper_constraints is not None or state.outer.ends_in_both:
        return _kkt_residual(problem, state, penalty, value_gradient)
    evaluation, track = Evaluation(problem, state), Track()
    response.update(problem, state, track, 1.0 / penalty, [evaluation])
    direction = _outer_gradient(problem, state, track, evaluation, penalty)
    return _projected_norm(state, direction - penalty * value_gradient)


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


def _outer_gradient(
    problem: BilevelProblem, state: State, track: Track, evaluation: Evaluation, penalty: float
) -> Array:
    """∇ₓ[f + γ (g + ⟨μ, c⟩ + ⟨ν, h⟩)] at the leaves."""
    with state.lower.frozen():
        f, g = evaluation.pair(through_x=True)
        terms = evaluation.lagrangian_terms(
            track.inequality_multipliers, track.equality_multipliers
        )
        return gradient(f + penalty * (g + terms), state.upper.leaves)


def _projected_norm(state: State, outer: Array) -> float:
    level = state.upper
    level.clear_gradients()
    for leaf, part in zip(level.leaves, unflatten(outer, level.leaves), strict=True):
        leaf.grad = part
    norm = float(level.projected_gradient_norm())
    level.clear_gradients()
    return norm


def _kkt_residual(
    problem: BilevelProblem, state: State, penalty: float, value_gradient: Array
) -> float:
    """Distance of -∇[f + γ(g - v)] to the cone of the active constraints' gradients, in (x, y)."""
    from scipy.optimize import lsq_linear

    evaluation = Evaluation(problem, state)

    def objective() -> torch.Tensor:
        f, g = evaluation.pair(through_x=True)
        return f + penalty * g

    program = joint_program(problem, state, objective)
    z = program.point()
    at = program.evaluate(z)
    slope = at.gradient.copy()
    slope[: len(value_gradient)] -= penalty * value_gradient
    identity = np.eye(len(z))
    columns = np.concatenate(
        [
            at.inequality_jacobian[at.inequalities >= -_ACTIVE],
            identity[z >= program.upper - _ACTIVE],
            -identity[z <= program.lower + _ACTIVE],
            at.equality_jacobian,
        ]
    )
    if not len(columns):
        return float(np.linalg.norm(slope))
    free = len(at.equalities)
    low = np.concatenate([np.zeros(len(columns) - free), np.full(free, -np.inf)])
    fit = lsq_linear(columns.T, -slope, bounds=(low, np.inf))
    return float(np.linalg.norm(columns.T @ fit.x + slope))
