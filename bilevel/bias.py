"""The term that PBGD-Free leaves out of the gradient, and how it compares with what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bilevel.calculus import Array, gradient
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response, fresh_track
from bilevel.state import State

#: Updates of an approximate response that stand in for the original response.
_APPROXIMATE_UPDATES = 100


@dataclass(frozen=True)
class Bias:
    r"""PBGD-Free's bias at one point.

    Attributes
    ----------
    omitted : float
        :math:`\gamma\|\nabla_x L_g(x, y_\gamma) - \nabla_x L_g(x, y_g)\|`, the norm of what the
        value-function-free direction leaves out (L_g: the lower level's Lagrangian).
    direction : float
        :math:`\|\nabla_x f(x, y_\gamma)\|`, the norm of what it keeps.
    """

    omitted: float
    direction: float

    @property
    def ratio(self) -> float:
        """Omitted over kept; above 1 the direction says little about the full gradient."""
        if self.omitted == 0.0:
            return 0.0
        return self.omitted / self.direction if self.direction > 0 else float("inf")


def measure_bias(
    problem: BilevelProblem,
    state: State,
    penalty: float,
    response: Response,
    batches: tuple[Any, Any] = (None, None),
) -> Bias:
    """The bias at a state's x and y_γ; the state ends as it was."""
    kept, omitted = gradient_parts(problem, state, penalty, response, batches)
    return Bias(omitted=float(np.linalg.norm(omitted)), direction=float(np.linalg.norm(kept)))


def gradient_parts(
    problem: BilevelProblem,
    state: State,
    penalty: float,
    response: Response,
    batches: tuple[Any, Any] = (None, None),
) -> tuple[Array, Array]:
    """What PBGD-Free keeps of ∇F_γ and what it omits, at a state's x, y_γ and its multipliers.

    The state ends as it was; the original response is solved by ``response``, or, where that only
    makes steps, approximated by a hundred updates of it.
    """
    if state.upper.wrapped or state.lower.wrapped:
        raise NotApplicableError(
            "the bias is measured by derivatives that pass by DDP and fully_shard: measure it in "
            "one process, on the network itself, and leave bias_every= out here"
        )
    evaluation = Evaluation(problem, state, *batches)
    perturbed = state.lower.values()
    record, count = dict(state.record), state.gradient_evaluations
    with state.lower.frozen():
        kept = gradient(evaluation.upper(through_x=True), state.upper.leaves)
    _, slope_perturbed = lagrangian(evaluation, state.perturbed)
    track = fresh_track(response, problem, state)
    try:
        for _ in range(1 if response.exact else _APPROXIMATE_UPDATES):
            response.update(problem, state, track, 0.0, [evaluation])
        _, slope_original = lagrangian(evaluation, track)
    finally:
        state.lower.assign(perturbed)
        state.record, state.gradient_evaluations = record, count
    return kept, penalty * (slope_perturbed - slope_original)
