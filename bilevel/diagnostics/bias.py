"""The term that PBGD-Free leaves out of the gradient, and how it compares with what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bilevel.calculus import Array, gradient
from bilevel.diagnostics.point import at, require_upper_variable, respond
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.state import State, Track
from bilevel.trees import Tree

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


def bias(problem: BilevelProblem, x: Tree, y: Tree, penalty: float, *, solve: bool = False) -> Bias:
    r"""PBGD-Free's bias at x, at the cost of one original response.

    The gradient of the penalised value is what PBGD-Free descends along, plus what it omits:

    .. math:: \nabla F_\gamma(x) = \underbrace{\nabla_x f(x, y_\gamma)}_{\text{kept}}
        + \underbrace{\gamma\,[\nabla_x L_g(x, y_\gamma, \mu_\gamma)
        - \nabla_x L_g(x, y_g, \mu_g)]}_{\text{omitted}}

    The omitted term need not vanish as γ grows: it tends to the part of the hypergradient that goes
    through the lower level.

    Parameters
    ----------
    problem : BilevelProblem
        A deterministic problem.
    x, y : tree of tensors
        The point, with y the perturbed response :math:`y_\gamma`; it is not changed.
    penalty : float
        γ.
    solve : bool
        Solve for the perturbed response first, from y. Needed with lower-level constraints, whose
        multipliers come with it.

    Raises
    ------
    NotApplicableError
        If x is empty, the objectives take batches, y is too large for an exact response, or the
        lower level has constraints and ``solve`` is false.
    InfeasibleError, ResponseError
        If a response does not exist at x, or was not reached.

    References
    ----------
    Jiang et al. 2025, arXiv:2507.20400, Proposition 2 (the bias may stay of order one).
    """
    if problem.constrained and not solve:
        raise NotApplicableError(
            "with lower-level constraints the bias also needs the multipliers of the perturbed "
            "response: pass solve=True"
        )
    with at(problem, x, y, penalty) as state:
        if solve:
            evaluation = Evaluation(problem, state)
            state.perturbed = respond(problem, state, state.response, 1.0 / penalty, evaluation)
        return measure_bias(problem, state, penalty, state.response)


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

    The state's variables end as they were; the original response is solved by ``response``, or,
    where that only makes steps, approximated by a hundred updates of it.
    """
    require_upper_variable(state)
    if state.upper.wrapped or state.lower.wrapped:
        raise NotApplicableError(
            "the bias is measured by derivatives that pass by DDP and fully_shard: measure it in "
            "one process, on the network itself, and leave bias_every= out here"
        )
    evaluation = Evaluation(problem, state, *batches)
    perturbed = state.lower.values()
    evaluations_before = state.gradient_evaluations
    with state.lower.frozen():
        kept = gradient(evaluation.upper(through_x=True), state.upper.leaves)
    _, slope_perturbed = lagrangian(evaluation, state.perturbed)
    track = Track()
    response.start(problem, state, track)
    try:
        for _ in range(1 if response.exact else _APPROXIMATE_UPDATES):
            response.update(problem, state, track, 0.0, [evaluation])
        _, slope_original = lagrangian(evaluation, track)
    finally:
        state.lower.assign(perturbed)
        state.gradient_evaluations = evaluations_before
    return kept, penalty * (slope_perturbed - slope_original)
