"""First-order responses: a few gradient steps, warm-started."""

from __future__ import annotations

from dataclasses import dataclass

from bilevel.errors import NotApplicableError, OptionError
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward, require_gradients
from bilevel.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    make_optimizer,
    make_scheduler,
    take_step,
)
from bilevel.options import (
    check_count,
    check_optimizer_factory,
    check_optional_positive,
    check_scheduler_factory,
)
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response, residual_name
from bilevel.state import State, Track


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Response):
    r"""K projected first-order steps on :math:`w f + g`.

    .. math:: y \leftarrow \Pi_Y\bigl(y - \eta\,\nabla_y [w f(x, y) + g(x, y)]\bigr)

    or the step of any ``torch.optim`` optimiser in the place of the gradient step.

    Parameters
    ----------
    steps : int
        K, the number of steps an update makes.
    lr : float, optional
        η, for plain gradient descent.
    optimizer : callable, optional
        Leaves -> ``torch.optim`` optimiser, such as
        ``functools.partial(torch.optim.Adam, lr=1e-3)``.
    scheduler : callable, optional
        Optimiser -> ``torch.optim.lr_scheduler``; it steps once an update.
    clip_norm : float, optional
        Bound on the norm of the gradient.
    """

    steps: int = 1
    lr: float | None = None
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_count("GradientDescent steps", self.steps)
        if (self.lr is None) == (self.optimizer is None):
            raise OptionError(
                "the lower level needs a learning rate: give lower_lr=, or lower_optimizer="
                "functools.partial(torch.optim.Adam, lr=...), and not both"
            )
        check_optional_positive("lower_lr", self.lr)
        check_optional_positive("clip_norm", self.clip_norm)
        check_optimizer_factory("lower_optimizer", self.optimizer)
        check_scheduler_factory("lower_scheduler", self.scheduler)

    def start(self, problem: BilevelProblem, state: State, track: Track) -> None:
        """Make the track's optimiser over the lower level's leaves."""
        if problem.constrained:
            raise NotApplicableError(
                "GradientDescent cannot keep lower-level constraints; use MaxMin() or Exact() as "
                "the response, or state simple sets as lower_domain"
            )
        track.optimizer = make_optimizer("lower_optimizer", state.lower, self.lr, self.optimizer)
        track.scheduler = make_scheduler("lower_scheduler", track.optimizer, self.scheduler)

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Make K steps."""
        level, optimizer = state.lower, track.optimizer
        assert optimizer is not None
        with state.upper.frozen():
            for k in range(self.steps):
                level.clear_gradients()
                for evaluation in evaluations:
                    for loss in evaluation.losses(weight, 1.0):
                        backward(loss / len(evaluations), level, state, _source(weight))
                require_gradients(level, _source(weight))
                if state.measuring and k == 0:
                    state.record[residual_name(weight)] = level.projected_gradient_norm()
                take_step(level, optimizer, self.clip_norm)
        if track.scheduler is not None:
            track.scheduler.step()


def step_with_x(state: State) -> None:
    """Step in y along the gradients at its leaves, in the place of an update."""
    response, track = state.response, state.perturbed
    assert isinstance(response, GradientDescent)
    assert track.optimizer is not None
    if state.measuring:
        state.record["lower_residual"] = state.lower.projected_gradient_norm()
    take_step(state.lower, track.optimizer, response.clip_norm)
    if track.scheduler is not None:
        track.scheduler.step()


def _source(weight: float) -> str:
    return "lower (g)" if weight == 0.0 else "upper/penalty + lower (f/γ + g)"
