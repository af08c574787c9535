"""The papers' outer step: a first-order step along the method's outer direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from bilevel.errors import OptionError
from bilevel.evaluation import Evaluation
from bilevel.outer.base import Outer
from bilevel.problem import BilevelProblem
from bilevel.responses.base import OptimizerFactory, SchedulerFactory
from bilevel.responses.gradient_descent import check_rate
from bilevel.state import State

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

    def __post_init__(self) -> None:
        if self.lr is not None and self.optimizer is not None:
            raise OptionError("give upper_lr or upper_optimizer, not both")
        check_rate("upper_lr", self.lr)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Make the optimiser over x; an empty x (simple bilevel) needs none."""
        if state.upper.leaves:
            if self.lr is None and self.optimizer is None:
                raise OptionError(
                    "a first-order outer step needs a learning rate: give upper_lr=, or "
                    "upper_optimizer=functools.partial(torch.optim.Adam, lr=...)"
                )
            make = self.optimizer or partial(torch.optim.SGD, lr=self.lr or 0.0)
            state.upper_optimizer = make(state.upper.leaves)
            if self.scheduler is not None:
                state.upper_scheduler = self.scheduler(state.upper_optimizer)
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
        level, optimizer = state.upper, state.upper_optimizer
        if optimizer is not None:
            level.clear_gradients()
            solver.outer_gradient(problem, state, penalty, evaluations)
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(level.leaves, self.clip_norm)
            if state.measuring:
                state.record["stationarity"] = level.projected_gradient_norm()
            optimizer.step()
            level.project()
            if state.upper_scheduler is not None:
                state.upper_scheduler.step()
        self._ascend_multipliers(problem, state)

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
