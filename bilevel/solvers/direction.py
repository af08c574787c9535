"""The gradient of the penalised value, from both responses and their multipliers."""

from __future__ import annotations

from bilevel.evaluation import Evaluation
from bilevel.gradients import backward, require_gradients
from bilevel.problem import BilevelProblem
from bilevel.state import State


def penalised_value_gradient(
    problem: BilevelProblem,
    state: State,
    penalty: float,
    evaluations: list[Evaluation],
) -> None:
    """Accumulate ∇F_γ at x's leaves: first the terms at y_γ, then those at y_g."""
    assert state.original is not None
    perturbed, original = state.perturbed, state.original
    share = 1.0 / len(evaluations)
    with state.lower.frozen():
        for evaluation in evaluations:
            mu, nu = perturbed.inequality_multipliers, perturbed.equality_multipliers
            for loss in evaluation.losses(1.0, penalty, mu, nu, through_x=True):
                if loss.requires_grad:
                    source = "the penalised objective f + γ g"
                    keep = evaluation.keeps_features
                    backward(share * loss, state.upper, state, source, retain_graph=keep)
        with state.at_original():
            for evaluation in evaluations:
                g = evaluation.lower(through_x=True)
                evaluation.record("value", g)
                loss = g + evaluation.lagrangian_terms(
                    original.inequality_multipliers, original.equality_multipliers
                )
                if loss.requires_grad:
                    backward(-penalty * share * loss, state.upper, state, "lower (g)")
    require_gradients(state.upper, "upper (f) or lower (g)")
