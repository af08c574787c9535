"""A deterministic problem's levels as one smooth program in a NumPy vector (small problems)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array, gradient, hessian, jacobian
from bilevel.errors import InfeasibleError, ResponseError
from bilevel.newton import Linearisation
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.variables import Level

_MINIMISING = "minimising"


class LevelProgram:
    """minimise φ over the leaves of some levels, subject to the problem's constraints on them.

    Implements the :class:`bilevel.newton.Program` protocol. Evaluations write the point into the
    leaves, and whoever solves the program leaves the answer there.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        objective: Callable[[], Tensor],
        inequalities: Callable[[], Tensor],
        equalities: Callable[[], Tensor],
    ) -> None:
        self.levels = levels
        self.leaves = [leaf for level in levels for leaf in level.leaves]
        self.objective = objective
        self.inequalities = inequalities
        self.equalities = equalities
        bounds = [level.bounds() for level in levels]
        self.lower = np.concatenate([low for low, _ in bounds])
        self.upper = np.concatenate([high for _, high in bounds])

    def place(self, z: Array) -> None:
        """Write a point into the leaves."""
        start = 0
        for level in self.levels:
            level.assign_vector(z[start : start + level.size])
            start += level.size

    def point(self) -> Array:
        """The leaves' values."""
        return np.concatenate([level.vector() for level in self.levels])

    def value(self, z: Array) -> tuple[float, Array, Array]:
        """Objective, inequalities and equalities at z."""
        self.place(z)
        with torch.no_grad():
            return (
                float(self.objective()),
                _numpy(self.inequalities()),
                _numpy(self.equalities()),
            )

    def evaluate(self, z: Array) -> Linearisation:
        """Values and first derivatives at z."""
        self.place(z)
        objective, c, h = self.objective(), self.inequalities(), self.equalities()
        return Linearisation(
            objective=float(objective.detach()),
            gradient=gradient(objective, self.leaves),
            inequalities=_numpy(c),
            inequality_jacobian=jacobian(c, self.leaves),
            equalities=_numpy(h),
            equality_jacobian=jacobian(h, self.leaves),
        )

    def hessian(self, z: Array, mu: Array, nu: Array) -> Array:
        """Hessian of the Lagrangian at z."""
        self.place(z)
        total = self.objective()
        for multipliers, values in ((mu, self.inequalities()), (nu, self.equalities())):
            if len(values):
                total = total + torch.dot(torch.from_numpy(multipliers).to(values), values)
        return hessian(total, self.leaves)


@contextmanager
def minimising(objective: str) -> Iterator[None]:
    """Let a solver's error say what it was to minimise, of programs within programs the inner."""
    try:
        yield
    except (InfeasibleError, ResponseError) as error:
        if not str(error).startswith(_MINIMISING):
            error.args = (f"{_MINIMISING} {objective}: {error}", *error.args[1:])
        raise


def lower_inequalities(problem: BilevelProblem, state: State) -> Tensor:
    """c(x, y), then what the lower domain says beyond bounds, as one vector."""
    return _stack(state.lower, problem.inequalities(state.upper.tree, state.lower.tree), 0)


def lower_equalities(problem: BilevelProblem, state: State) -> Tensor:
    """h(x, y), then what the lower domain says beyond bounds, as one vector."""
    return _stack(state.lower, problem.equalities(state.upper.tree, state.lower.tree), 1)


def joint_program(
    problem: BilevelProblem, state: State, objective: Callable[[], Tensor]
) -> LevelProgram:
    """The program over (x, y) with the constraints of both levels; the lower level's come first."""

    def inequalities() -> Tensor:
        upper = _stack(
            state.upper, problem.upper_inequalities(state.upper.tree, state.lower.tree), 0
        )
        return torch.cat([lower_inequalities(problem, state), upper])

    def equalities() -> Tensor:
        return torch.cat([lower_equalities(problem, state), _stack(state.upper, None, 1)])

    return LevelProgram((state.upper, state.lower), objective, inequalities, equalities)


def _stack(level: Level, own: Tensor | None, kind: int) -> Tensor:
    parts = [] if own is None else [own]
    for leaf, domain in zip(level.leaves, level.domains, strict=True):
        extra = domain.constraints(leaf)[kind]
        if extra is not None:
            parts.append(extra)
    if parts:
        return torch.cat(parts)
    return level.leaves[0].new_zeros(0) if level.leaves else torch.zeros(0)


def _numpy(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float64).numpy().copy()
