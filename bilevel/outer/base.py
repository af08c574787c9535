"""What every outer step is asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from bilevel.calculus import Array
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.schedules import Constant, Schedule
from bilevel.state import State

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver
    from bilevel.stationarity import Stationarity


class Outer(ABC):
    """Moves x (and with it the tracked responses) at the current penalty."""

    #: Whether the step relies on responses that are solved to accuracy.
    needs_exact_response: bool = False
    #: Whether objectives may take batches.
    takes_batches: bool = True
    #: Whether a step ends with x, so that y_γ has yet to follow it.
    moves_x_last: bool = False
    #: Whether steps end at stationary points in (x, y) together, where constraints meet.
    ends_in_both: bool = False

    def default_penalty(self) -> Schedule:
        """The penalty schedule used where the solver was given none."""
        return Constant(10.0)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Prepare the state; called once before the first ``advance``."""
        return None

    @abstractmethod
    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Make one outer step, in place; set ``state.finished`` when nothing is left to do."""

    def stationarity(
        self, problem: BilevelProblem, state: State, penalty: float, value_gradient: Array
    ) -> Stationarity | None:
        """The residual of the penalised problem, where the step leaves one; ``None`` otherwise.

        ``value_gradient`` is a fresh ∇v at the state's x.
        """
        return None
