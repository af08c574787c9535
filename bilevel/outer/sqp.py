"""The outer step for small deterministic problems: SQP on the penalised problem in (x, y)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from bilevel.calculus import Array
from bilevel.errors import OptionError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.newton import Evaluation as ProgramEvaluation
from bilevel.newton import minimise_elastic, solve
from bilevel.outer.base import Outer
from bilevel.outer.value_function import ValueFunction
from bilevel.problem import BilevelProblem
from bilevel.program import LevelProgram, joint_program
from bilevel.schedules import Geometric, Schedule, settled
from bilevel.state import State

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

#: The relaxation's weight against the largest lower-level multiplier seen.
_ELASTIC_FACTOR = 10.0
#: Weight beyond which multipliers count as unbounded: there is no Slater point.
_LARGEST_ELASTIC = 1e8
#: Total violation, relative to the iterate, that the relaxation may leave.
_SLACK = 1e-8


@dataclass(frozen=True, kw_only=True)
class SQP(Outer):
    r"""Solve the penalised problem of the current γ in (x, y) together.

    .. math:: \min_{x \in X,\, y \in Y} f(x, y) + \gamma\,[g(x, y) - v(x)]
        \quad\text{s.t.}\quad c(x, y) \le 0,\ h(x, y) = 0,\ C(x, y) \le 0

    by sequential quadratic programming, with v and its derivatives from an exact original response
    (envelope and implicit function theorems). One outer step is one such solve, warm-started from
    the last, so a growing penalty schedule is a continuation. Both levels' constraints are relaxed
    by exact penalties, so an x without a feasible y is no obstacle on the way.

    For deterministic problems with up to about a hundred entries in x and y together.

    Parameters
    ----------
    max_iterations : int
        Bound on the SQP iterations in one step.
    tolerance : float
        Relative residual of the KKT system at which one step is done.
    """

    max_iterations: int = 60
    tolerance: float = 1e-10
    needs_exact_response = True

    def __post_init__(self) -> None:
        if not isinstance(self.max_iterations, int) or self.max_iterations < 1:
            raise OptionError(f"max_iterations={self.max_iterations!r}, expected an integer >= 1")
        if not 0 < self.tolerance < 1:
            raise OptionError(f"tolerance={self.tolerance!r}, expected a number between 0 and 1")

    def default_penalty(self) -> Schedule:
        """A continuation from 1 to 1e6 in factors of ten."""
        return Geometric(1.0, 1e6, steps=6)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Begin with the relaxation's weight unset."""
        state.outer_state["elastic"] = 10.0

    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Solve at this penalty; finished once the schedule has reached its last value."""
        evaluation = evaluations[0]

        def objective() -> Tensor:
            f, g = evaluation.pair(through_x=True)
            return f + penalty * g

        joint = joint_program(problem, state, objective)
        z = joint.point()
        while True:
            elastic = state.outer_state["elastic"]
            value_function = ValueFunction(problem, state, elastic=elastic)
            program = PenalisedProgram(joint, value_function, penalty, state)
            weight = _ELASTIC_FACTOR * penalty * elastic
            follower = Follower(joint, evaluation, penalty, weight, state)
            try:
                z, slack = minimise_elastic(
                    program, z, weight, self.tolerance, self.max_iterations, follower.settle
                )
            except ResponseError:  # unbounded below where the relaxation is too weak
                if elastic >= _LARGEST_ELASTIC:
                    raise
                slack = np.inf
            joint.place(z)
            value = value_function()
            tight = slack <= _SLACK * (1.0 + float(np.abs(z).max()))
            enough = tight and value.largest_multiplier < 0.9 * elastic
            if enough or elastic >= _LARGEST_ELASTIC:
                break
            state.outer_state["elastic"] = elastic * _ELASTIC_FACTOR
        state.record["value"] = value.value
        evaluation.pair()
        state.finished = settled(state.schedule, state.step)


class PenalisedProgram:
    """f + γ (g − v) over (x, y) as a :class:`bilevel.newton.Program`."""

    def __init__(
        self, joint: LevelProgram, value_function: ValueFunction, penalty: float, state: State
    ) -> None:
        self.joint = joint
        self.value_function = value_function
        self.penalty = penalty
        self.state = state
        self.lower, self.upper = joint.lower, joint.upper

    def value(self, z: Array) -> tuple[float, Array, Array]:
        """Objective, inequalities and equalities."""
        objective, inequalities, equalities = self.joint.value(z)
        return objective - self.penalty * self.value_function().value, inequalities, equalities

    def evaluate(self, z: Array) -> ProgramEvaluation:
        """Values and first derivatives."""
        at = self.joint.evaluate(z)
        value = self.value_function()
        self.state.gradient_evaluations += 1
        gradient = at.gradient.copy()
        gradient[: len(value.gradient)] -= self.penalty * value.gradient
        return ProgramEvaluation(
            objective=at.objective - self.penalty * value.value,
            gradient=gradient,
            inequalities=at.inequalities,
            inequality_jacobian=at.inequality_jacobian,
            equalities=at.equalities,
            equality_jacobian=at.equality_jacobian,
        )

    def hessian(self, z: Array, mu: Array, nu: Array) -> Array:
        """Hessian of the Lagrangian."""
        second = self.joint.hessian(z, mu, nu)
        n = self.state.upper.size
        if n:
            second[:n, :n] -= self.penalty * self.value_function.hessian()
        return second


class Follower:
    """Moves y to the perturbed response at the x of a trial point.

    Of all y this one makes the penalised objective least, violations of both levels' constraints
    counted at the same weight as in the program over (x, y).
    """

    def __init__(
        self,
        joint: LevelProgram,
        evaluation: Evaluation,
        penalty: float,
        weight: float,
        state: State,
    ) -> None:
        self.joint = joint
        self.size = state.upper.size
        self.elastic = weight / penalty
        self._multipliers: tuple[Array | None, Array | None] = (None, None)

        def objective() -> Tensor:
            f, g = evaluation.pair()
            return f / penalty + g

        self.state = state
        self.program = LevelProgram((state.lower,), objective, joint.inequalities, joint.equalities)

    def settle(self, z: Array) -> Array:
        """The point (x, y_γ(x)); the point itself where no response is found from it."""
        self.joint.place(z)
        mu, nu = self._multipliers
        with self.state.upper.frozen():
            try:
                answer = solve(self.program, z[self.size :], mu0=mu, nu0=nu, elastic=self.elastic)
            except ResponseError:
                return z
        self._multipliers = (answer.mu, answer.nu)
        return np.concatenate([z[: self.size], answer.z])
