"""The term that PBGD-Free leaves out of the gradient, and how it compares with what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bilevel.calculus import gradient
from bilevel.evaluation import Evaluation
from bilevel.outer.value_function import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.state import State, Track

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
    """The bias at a state's x and y_γ, at the cost of one original response.

    The state's variables end as they were; the original response is solved by ``response``, or,
    where that only makes steps, approximated by a hundred updates of it.
    """
    evaluation = Evaluation(problem, state, *batches)
    perturbed = state.lower.values()
    evaluations_before = state.gradient_evaluations
    with state.lower.frozen():
        f = evaluation.upper(through_x=True)
        kept = gradient(f, state.upper.leaves)
    _, slope_perturbed = lagrangian(problem, state, state.perturbed, evaluation)
    track = Track()
    response.start(problem, state, track)
    try:
        for _ in range(1 if response.exact else _APPROXIMATE_UPDATES):
            response.update(problem, state, track, 0.0, [evaluation])
        _, slope_original = lagrangian(problem, state, track, evaluation)
    finally:
        state.lower.assign(perturbed)
        state.gradient_evaluations = evaluations_before
    return Bias(
        omitted=float(penalty * np.linalg.norm(slope_perturbed - slope_original)),
        direction=float(np.linalg.norm(kept)),
    )
