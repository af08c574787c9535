"""Constrained responses by first-order primal-dual steps (BLOCC's inner algorithm)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.errors import OptionError
from bilevel.evaluation import Evaluation, require_same_length
from bilevel.gradients import backward, require_gradients
from bilevel.options import check_count, check_optional_positive
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response, residual_name
from bilevel.state import State, Track
from bilevel.variables import Level, global_norm


@dataclass(frozen=True, kw_only=True)
class MaxMin(Response):
    r"""Projected gradient ascent in the multipliers, descent in y, on the Lagrangian.

    .. math:: L(y, \mu, \nu) = w f(x, y) + g(x, y) + \langle \mu, c(x, y) \rangle
        + \langle \nu, h(x, y) \rangle

    One update makes T = ``steps`` dual steps, each after T_y = ``primal_steps`` primal ones:

    .. math::
        \tilde\mu &= \mu_t + \tfrac{t-1}{t+2}(\mu_t - \mu_{t-1}) \\
        y &\leftarrow \Pi_Y\bigl(y - \eta_y \nabla_y L(y, \tilde\mu)\bigr)
            \quad T_y \text{ times} \\
        \mu_{t+1} &= [\tilde\mu + \eta_\mu\, c(x, y)]_+

    (ν alike, without the bracket), warm-started in both. With ``accelerated=False`` the
    extrapolation is left out: with T_y = 1 that is the single loop, and the faster variant where
    the constraints are affine in y, g is strongly convex and Y is the whole space. The accelerated
    form needs y to follow its multipliers closely (several primal steps).

    Parameters
    ----------
    steps : int
        T, dual steps an update.
    lr : float
        η_y; stable below 2 / (curvature of the Lagrangian in y).
    dual_lr : float, optional
        η_μ; stable below 2σ / ‖∂c/∂y‖² for a σ-strongly convex g. As ``lr`` where not given.
    primal_steps : int
        T_y, primal steps before each dual one.
    accelerated : bool
        Extrapolate the multipliers (Nesterov).

    Source: arXiv:2406.10148, Algorithm 2 (accelerated) and its version for affine constraints.
    """

    steps: int = 100
    lr: float | None = None
    dual_lr: float | None = None
    primal_steps: int = 1
    accelerated: bool = False

    def __post_init__(self) -> None:
        check_count("MaxMin steps", self.steps)
        check_count("MaxMin primal_steps", self.primal_steps)
        if self.lr is None:
            raise OptionError(
                "first-order steps on a constrained lower level need a step size: give lower_lr=, "
                "or response=MaxMin(lr=..., dual_lr=...)"
            )
        check_optional_positive("MaxMin lr", self.lr)
        check_optional_positive("MaxMin dual_lr", self.dual_lr)

    def start(self, problem: BilevelProblem, state: State, track: Track) -> None:
        """Begin with zero multipliers."""
        c = problem.inequalities(state.upper.tree, state.lower.tree)
        h = problem.equalities(state.upper.tree, state.lower.tree)
        track.inequality_multipliers = None if c is None else torch.zeros_like(c.detach())
        track.equality_multipliers = None if h is None else torch.zeros_like(h.detach())

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Make T dual steps."""
        dual_lr = self.dual_lr if self.dual_lr is not None else self.lr
        assert dual_lr is not None
        mu, nu = track.inequality_multipliers, track.equality_multipliers
        last_mu, last_nu = mu, nu
        with state.upper.frozen():
            for t in range(self.steps):
                momentum = max(t - 1, 0) / (t + 2) if self.accelerated else 0.0
                ahead_mu, ahead_nu = _ahead(mu, last_mu, momentum), _ahead(nu, last_nu, momentum)
                for k in range(self.primal_steps):
                    self._differentiate(state, weight, evaluations, ahead_mu, ahead_nu)
                    if state.measuring and t == k == 0:
                        slope = state.lower.projected_gradient_norm()
                        others = _dual_residual(problem, state, mu, nu).to(slope)
                        state.record[residual_name(weight)] = torch.maximum(slope, others)
                    self._descend(state.lower)
                last_mu, last_nu = mu, nu
                with torch.no_grad():
                    if ahead_mu is not None:
                        c = problem.inequalities(state.upper.tree, state.lower.tree)
                        assert c is not None
                        require_same_length("lower_constraints", c, ahead_mu)
                        mu = (ahead_mu + dual_lr * c).clamp_min_(0.0)
                    if ahead_nu is not None:
                        h = problem.equalities(state.upper.tree, state.lower.tree)
                        assert h is not None
                        require_same_length("lower_equalities", h, ahead_nu)
                        nu = ahead_nu + dual_lr * h
        track.inequality_multipliers, track.equality_multipliers = mu, nu

    @staticmethod
    def _differentiate(
        state: State,
        weight: float,
        evaluations: list[Evaluation],
        mu: Tensor | None,
        nu: Tensor | None,
    ) -> None:
        level = state.lower
        level.clear_gradients()
        for evaluation in evaluations:
            for loss in evaluation.losses(weight, 1.0, mu, nu):
                backward(loss / len(evaluations), level, state, "the lower-level Lagrangian")
        require_gradients(level, "the lower-level Lagrangian")

    def _descend(self, level: Level) -> None:
        with torch.no_grad():
            torch._foreach_add_(
                [leaf for leaf in level.leaves if leaf.grad is not None],
                level.gradients(),
                alpha=-float(self.lr or 0.0),
            )
        level.project()


@torch.no_grad()
def _dual_residual(
    problem: BilevelProblem, state: State, mu: Tensor | None, nu: Tensor | None
) -> Tensor:
    """The norm of (μ - [μ + c]₊, h): how far the multipliers and constraints are from optimal."""
    x, y = state.upper.tree, state.lower.tree
    parts: list[Tensor] = []
    if mu is not None and (c := problem.inequalities(x, y)) is not None:
        require_same_length("lower_constraints", c, mu)
        parts.append(mu - (mu + c).clamp_min(0.0))
    if nu is not None and (h := problem.equalities(x, y)) is not None:
        require_same_length("lower_equalities", h, nu)
        parts.append(h)
    return global_norm(parts)


def _ahead(now: Tensor | None, last: Tensor | None, momentum: float) -> Tensor | None:
    if now is None or last is None or momentum == 0.0:
        return now
    return now + momentum * (now - last)
