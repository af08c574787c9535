"""The papers' outer step: a first-order step along the method's outer direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bilevel.errors import OptionError
from bilevel.evaluation import Evaluation
from bilevel.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    make_optimizer,
    make_scheduler,
    take_step,
)
from bilevel.options import (
    check_optimizer_factory,
    check_optional_positive,
    check_scheduler_factory,
)
from bilevel.outer.base import Outer
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.verification import constraint_violation

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

#: ρ of the augmented Lagrangian that keeps upper constraints.
UPPER_CONSTRAINT_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Outer):
    r"""A projected first-order step :math:`x \leftarrow \Pi_X(x - \eta\, d)`, or any optimiser's.

    d is the solver's outer direction. Upper constraints C(x, y) <= 0 enter f as the augmented
    Lagrangian's term :math:`\tfrac{\rho}{2}\|[C + \sigma/\rho]_+\|^2`, whose multipliers σ take one
    ascent step after each step in x.

    Parameters
    ----------
    lr : float, optional
        η, for plain gradient descent.
    optimizer : callable, optional
        Leaves -> ``torch.optim`` optimiser.
    scheduler : callable, optional
        Optimiser -> ``torch.optim.lr_scheduler``; it steps once an outer step.
    clip_norm : float, optional
        Bound on the norm of d.
    """

    lr: float | None = None
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    clip_norm: float | None = None
    moves_x_last = True

    def __post_init__(self) -> None:
        if self.lr is not None and self.optimizer is not None:
            raise OptionError("give upper_lr or upper_optimizer, not both")
        check_optional_positive("upper_lr", self.lr)
        check_optional_positive("clip_norm", self.clip_norm)
        check_optimizer_factory("upper_optimizer", self.optimizer)
        check_scheduler_factory("upper_scheduler", self.scheduler)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Make the optimiser over x; an empty x (simple bilevel) needs none."""
        if state.upper.leaves:
            if self.lr is None and self.optimizer is None:
                raise OptionError(
                    "a first-order outer step needs a learning rate: give upper_lr=, or "
                    "upper_optimizer=functools.partial(torch.optim.Adam, lr=...)"
                )
            optimizer = make_optimizer("upper_optimizer", state.upper, self.lr, self.optimizer)
            state.upper_optimizer = optimizer
            state.upper_scheduler = make_scheduler("upper_scheduler", optimizer, self.scheduler)
        if problem.upper_constraints is not None:
            values = problem.upper_inequalities(state.upper.tree, state.lower.tree)
            assert values is not None
            state.outer_state["upper_multipliers"] = torch.zeros_like(values.detach())
            state.outer_state["upper_constraint_penalty"] = UPPER_CONSTRAINT_PENALTY

    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Update the responses, form the outer direction, take the step."""
        solver.respond(problem, state, penalty, evaluations)
        if state.measuring:
            self._measure(problem, state)
        level, optimizer = state.upper, state.upper_optimizer
        if optimizer is not None:
            level.clear_gradients()
            solver.outer_gradient(problem, state, penalty, evaluations)
            if state.measuring:
                state.record["stationarity"] = level.projected_gradient_norm()
            take_step(level, optimizer, self.clip_norm)
            if state.upper_scheduler is not None:
                state.upper_scheduler.step()
        elif state.response.exact:
            state.record["stationarity"] = 0.0  # without x, the response is the solution
        self._ascend_multipliers(problem, state)

    @staticmethod
    def _measure(problem: BilevelProblem, state: State) -> None:
        """Residuals of the constraints at the x of this step's other records."""
        state.record["violation"] = constraint_violation(problem, state)
        multipliers = state.outer_state.get("upper_multipliers")
        if multipliers is not None:
            with torch.no_grad():
                values = problem.upper_inequalities(state.upper.tree, state.lower.tree)
                assert values is not None
                settled = (multipliers + values).clamp_min(0.0)
                state.record["upper_residual"] = torch.linalg.vector_norm(multipliers - settled)

    @staticmethod
    def _ascend_multipliers(problem: BilevelProblem, state: State) -> None:
        multipliers = state.outer_state.get("upper_multipliers")
        if multipliers is None:
            return
        with torch.no_grad():
            values = problem.upper_inequalities(state.upper.tree, state.lower.tree)
            assert values is not None
            rho = state.outer_state["upper_constraint_penalty"]
            state.outer_state["upper_multipliers"] = (multipliers + rho * values).clamp_min(0.0)
