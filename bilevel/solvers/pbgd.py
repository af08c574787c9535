"""PBGD: penalty-based bilevel gradient descent on the value-function gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bilevel.errors import NotApplicableError, OptionError
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward, require_gradients
from bilevel.problem import BilevelProblem
from bilevel.responses.gradient_descent import step_with_x
from bilevel.solvers.base import PenaltySolver
from bilevel.solvers.direction import penalised_value_gradient
from bilevel.state import State


@dataclass(frozen=True, kw_only=True, repr=False)
class PBGD(PenaltySolver):
    r"""Penalty-based bilevel gradient descent.

    Follows the perturbed response y_γ and the original response y_g and descends the penalised
    value :math:`F_\gamma(x) = \min_y f + \gamma(g - v(x))`:

    .. math::
        \nabla F_\gamma(x) = \nabla_x f(x, y_\gamma)
        + \gamma\,[\nabla_x g(x, y_\gamma) - \nabla_x g(x, y_g)].

    The alternating variant moves the responses first, by ``inner_steps`` steps each,
    and then x at the new responses; its step size in x need not shrink with γ. The joint variant
    moves x and y together by one gradient step of f + γ(g − v), after ``inner_steps`` steps on y_g:
    the y-gradient is scaled to that of f/γ + g, so ``lower_lr`` means the same in both.

    For an unconstrained lower level or a simple domain; with constraints use
    :class:`~bilevel.BLOCC`.

    Parameters
    ----------
    variant : {"alternating", "joint"}
        As above.
    penalty : float or schedule, optional
        γ > 0: a number, one of :mod:`bilevel.schedules`, or a callable step -> penalty.
    upper_lr, lower_lr : float, optional
        Step sizes of plain gradient descent. Where not given, nor an optimiser, small problems are
        solved by SQP or quasi-Newton steps with exact responses.
    inner_steps : int, optional
        K, steps on each response in one outer step.
    upper_optimizer, lower_optimizer : callable, optional
        Leaves -> ``torch.optim`` optimiser, in the place of a step size; for instance
        ``functools.partial(torch.optim.AdamW, lr=1e-4)``.
    **options
        The others (response, outer step, schedulers, clipping, accumulation, autocast) are those of
        :class:`~bilevel.solvers.base.PenaltySolver`.

    Source: joint variant Shen and Chen 2023, arXiv:2302.05185, Algorithm 1; alternating variant
    arXiv:2507.20400, section 2.
    """

    variant: str = "alternating"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("alternating", "joint"):
            raise OptionError(f"variant={self.variant!r}, expected 'alternating' or 'joint'")
        if self.variant == "joint" and self.lower_lr is None and self.lower_optimizer is None:
            raise OptionError("variant='joint' takes gradient steps in y: give lower_lr=")

    @property
    def moves_y_with_x(self) -> bool:
        """Whether the variant is the joint one."""
        return self.variant == "joint"

    def check(self, problem: BilevelProblem) -> None:
        """Refuse lower-level constraints."""
        if problem.constrained:
            raise NotApplicableError(
                "PBGD takes an unconstrained lower level or a simple lower_domain, and this "
                "problem has lower_constraints or lower_equalities: use BLOCC, or PBGDFree"
            )

    def respond(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Update both responses, or in the joint variant y_g alone."""
        if self.variant == "alternating":
            super().respond(problem, state, penalty, evaluations)
            return
        with state.at_original() as track:
            state.response.update(problem, state, track, 0.0, evaluations)

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Accumulate the direction at x's leaves; in the joint variant step in y as well."""
        if self.variant == "alternating":
            penalised_value_gradient(problem, state, penalty, evaluations)
            return
        share = 1.0 / len(evaluations)
        keep = any(evaluation.keeps_features for evaluation in evaluations)
        with state.lower.frozen(), state.at_original():
            for evaluation in evaluations:
                g = evaluation.lower(through_x=True)
                evaluation.record("value", g)
                if g.requires_grad:
                    loss = -penalty * share * g
                    backward(loss, state.upper, state, "lower (g)", retain_graph=keep)
        state.lower.clear_gradients()  # a wrapped network's gradients at y_g came along
        for evaluation in evaluations:
            for loss in evaluation.losses(share, share * penalty, through_x=True):
                backward(loss, state.lower, state, "f + γ g")
        require_gradients(state.upper, "upper (f) or lower (g)")
        torch._foreach_div_(state.lower.gradients(), penalty)
        step_with_x(state)
