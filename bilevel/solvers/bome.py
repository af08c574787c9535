"""BOME: joint steps whose penalty follows from the gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.distributed import world_size
from bilevel.errors import NotApplicableError, OptionError
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward, require_gradients
from bilevel.options import check_positive
from bilevel.problem import BilevelProblem
from bilevel.responses.gradient_descent import step_with_x
from bilevel.solvers.base import PenaltySolver
from bilevel.state import State
from bilevel.variables import Level


@dataclass(frozen=True, kw_only=True, repr=False)
class BOME(PenaltySolver):
    r"""Bilevel optimisation made easy: the penalty that keeps the lower-level gap falling.

    After ``inner_steps`` steps on the original response y_g, x and y move together against

    .. math::
        \nabla f + \lambda \nabla \hat q, \qquad
        \lambda = \frac{[\eta\,\|\nabla \hat q\|^2 - \langle \nabla f, \nabla \hat q\rangle]_+}
                       {\|\nabla \hat q\|^2}, \qquad
        \hat q(x, y) = g(x, y) - g(x, y_g),

    the direction nearest to :math:`\nabla f` along which the gap :math:`\hat q` falls at least at
    the rate :math:`\eta\,\|\nabla \hat q\|^2`. λ is recorded as the penalty, of
    which none is taken.

    Parameters
    ----------
    control : float
        η, the rate at which the gap has to fall.
    upper_lr, lower_lr, upper_optimizer, lower_optimizer
        Of x and of y; y_g has an optimiser of its own, made like that of y.
    inner_steps : int, optional
        K, steps on y_g in one outer step.
    **options
        The others are those of :class:`~bilevel.solvers.base.PenaltySolver`.

    Source: Liu et al. 2022, arXiv:2209.08709, Algorithm 1, with y_g warm-started.
    """

    control: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("control", self.control)
        if self.penalty is not None:
            raise OptionError("BOME finds its penalty itself: leave penalty= out, or use PBGD")
        if self.lower_lr is None and self.lower_optimizer is None:
            raise OptionError("BOME takes gradient steps in y: give lower_lr= or lower_optimizer=")

    def check(self, problem: BilevelProblem) -> None:
        """Refuse lower-level constraints, and several processes."""
        if problem.constrained:
            raise NotApplicableError(
                "BOME takes an unconstrained lower level, and this problem has lower_constraints "
                "or lower_equalities: use BLOCC"
            )
        if world_size() > 1:
            raise NotApplicableError(
                "BOME's multiplier needs inner products of gradients, which are formed in one "
                "process here: use PBGD or PBGDFree in several"
            )

    @property
    def moves_y_with_x(self) -> bool:
        """Always."""
        return True

    def penalty_of(self, state: State, step: int) -> float | Tensor:
        """λ of the last step."""
        multiplier: float | Tensor = state.outer_state.get("multiplier", 0.0)
        return multiplier

    def residual_weights(self, penalty: float) -> dict[str, float]:
        """y's residual is that of the whole direction; y_g's enters it λ times."""
        return {"lower_residual": 1.0, "original_residual": max(1.0, penalty)}

    def respond(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Update y_g; y moves with x."""
        with state.at_original() as track:
            state.response.update(problem, state, track, 0.0, evaluations)

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Leave the direction at x's leaves, and step in y along its part there."""
        share = 1.0 / len(evaluations)
        with state.lower.frozen(), state.at_original():
            for evaluation in evaluations:
                g = _backward(state, evaluation, "lower", state.upper, share)
                evaluation.record("value", g)
        at_response = _taken(state.upper)
        state.lower.clear_gradients()  # a wrapped network's gradients at y_g came along
        for evaluation in evaluations:
            evaluation.record("lower", _backward(state, evaluation, "lower", state.lower, share))
        g_reaches_x = bool(state.upper.gradients())
        gap = _taken(state.upper)
        torch._foreach_sub_(gap, at_response)
        gap += _taken(state.lower)
        for evaluation in evaluations:
            _backward(state, evaluation, "upper", state.lower, share)
            evaluation.record_upper()
        if not g_reaches_x:
            require_gradients(state.upper, "upper (f) or lower (g)")
        leaves = [*state.upper.leaves, *state.lower.leaves]
        slopes = [*_slopes(state.upper), *_slopes(state.lower)]
        square, inner = _dot(gap, gap), _dot(slopes, gap)
        # Where the gap's gradient vanishes, so does its part of the direction.
        multiplier = torch.where(square > 0, self.control - inner / square, 0.0).clamp_min(0.0)
        state.outer_state["multiplier"] = multiplier
        for leaf, slope, part in zip(leaves, slopes, gap, strict=True):
            leaf.grad = slope + multiplier.to(slope) * part
        step_with_x(state)


def _backward(
    state: State, evaluation: Evaluation, objective: str, level: Level, share: float
) -> Tensor:
    """Accumulate a share of the gradients of one objective at both levels; return its value."""
    value = evaluation.lower if objective == "lower" else evaluation.upper
    loss = value(through_x=True)
    if loss.requires_grad:
        backward(share * loss, level, state, objective, retain_graph=evaluation.keeps_features)
    return loss.detach()


def _taken(level: Level) -> list[Tensor]:
    """The gradients, zero where there is none, taken off the leaves."""
    slopes = _slopes(level)
    level.clear_gradients()
    return slopes


def _slopes(level: Level) -> list[Tensor]:
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in level.leaves]


def _dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    products = ((one * other).sum() for one, other in zip(first, second, strict=True))
    return sum(products, start=torch.zeros(()))
