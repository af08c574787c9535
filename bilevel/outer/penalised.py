"""The penalised problem in (x, y) as a small smooth program, and its exact minimisation over y."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilevel.calculus import Array
from bilevel.errors import NonFiniteError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.newton import Linearisation, solve
from bilevel.outer.value_function import ValueFunction
from bilevel.program import LevelProgram
from bilevel.state import State


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
        """Objective, inequalities and equalities; an infinite objective where v is not defined."""
        objective, inequalities, equalities = self.joint.value(z)
        try:
            value = self.value_function().value
        except NonFiniteError:
            return np.inf, inequalities, equalities
        return objective - self.penalty * value, inequalities, equalities

    def evaluate(self, z: Array) -> Linearisation:
        """Values and first derivatives."""
        at = self.joint.evaluate(z)
        value = self.value_function()
        self.state.gradient_evaluations += 1
        gradient = at.gradient.copy()
        gradient[: len(value.gradient)] -= self.penalty * value.gradient
        return Linearisation(
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
            except (NonFiniteError, ResponseError):
                return z
        self.state.gradient_evaluations += answer.iterations
        self._multipliers = (answer.mu, answer.nu)
        return np.concatenate([z[: self.size], answer.z])
