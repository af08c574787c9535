"""The response of a lower level that is written as a CVXPY problem with x as its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import InfeasibleError, NotApplicableError, OptionError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.state import State, Track
from bilevel.variables import Level


@dataclass(frozen=True, kw_only=True)
class CvxpyResponse(Response):
    r"""Solve the lower level with CVXPY, multipliers included.

    States in CVXPY what the :class:`~bilevel.BilevelProblem` states in torch, entry for entry:

    .. math:: \min_y\; w f(x, y) + g(x, y) \quad\text{s.t.}\quad c(x, y) \le 0,\ h(x, y) = 0.

    Parameters
    ----------
    lower : cvxpy.Expression
        g, convex in the variables.
    parameters : sequence of cvxpy.Parameter
        One a leaf of x, in x's order and shapes.
    variables : sequence of cvxpy.Variable
        One a leaf of y, in y's order and shapes.
    inequalities, equalities : sequence of cvxpy constraints
        In the order of the entries of ``lower_constraints`` and ``lower_equalities``, each written
        as ``left <= right`` with c = left − right (``left == right`` with h = left − right).
    domain : sequence of cvxpy constraints
        What ``lower_domain`` states; without multipliers in the Lagrangian.
    upper : cvxpy.Expression, optional
        f, convex in the variables; only first-order outer steps and QuasiNewton need it.
    solver : str, optional
        One of ``cvxpy.installed_solvers()``.
    solver_options : mapping
        Passed to ``cvxpy.Problem.solve``.

    Raises
    ------
    InfeasibleError
        If the lower level has no feasible point at an x.
    ResponseError
        If the solver reports anything but an optimal solution.
    """

    lower: Any
    parameters: Sequence[Any]
    variables: Sequence[Any]
    inequalities: Sequence[Any] = ()
    equalities: Sequence[Any] = ()
    domain: Sequence[Any] = ()
    upper: Any = None
    solver: str | None = None
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    exact = True

    def start(self, problem: BilevelProblem, state: State, track: Track) -> None:
        """Check that parameters and variables fit the levels, and constraints the problem's."""
        _match(state.upper, self.parameters, "parameters")
        _match(state.lower, self.variables, "variables")
        x, y = state.upper.tree, state.lower.tree
        with torch.no_grad():
            _match_constraints("lower_constraints", problem.inequalities(x, y),
                               "inequalities", self.inequalities)  # fmt: skip
            _match_constraints("lower_equalities", problem.equalities(x, y),
                               "equalities", self.equalities)  # fmt: skip

    @cached_property
    def _programs(self) -> tuple[Any, Any, Any]:
        """The original program, the perturbed one, and the latter's weight."""
        import cvxpy as cp

        constraints = [*self.inequalities, *self.equalities, *self.domain]
        original = cp.Problem(cp.Minimize(self.lower), constraints)
        if self.upper is None:
            return original, None, None
        weight = cp.Parameter(nonneg=True)
        perturbed = cp.Problem(cp.Minimize(weight * self.upper + self.lower), constraints)
        return original, perturbed, weight

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Solve at the current x and take over variables and duals."""
        program, perturbed, weight_parameter = self._programs
        if weight > 0:
            if perturbed is None:
                raise NotApplicableError(
                    "this outer step needs the perturbed response, and CvxpyResponse was given no "
                    "upper=: state f in CVXPY as well"
                )
            program, weight_parameter.value = perturbed, weight
        for parameter, leaf in zip(self.parameters, state.upper.leaves, strict=True):
            parameter.value = leaf.detach().cpu().double().numpy()
        self._solve(program)
        with torch.no_grad():
            for variable, leaf in zip(self.variables, state.lower.leaves, strict=True):
                leaf.copy_(torch.as_tensor(np.asarray(variable.value)))
        like = state.lower.leaves[0]
        track.inequality_multipliers = _duals(self.inequalities, like)
        track.equality_multipliers = _duals(self.equalities, like)
        state.gradient_evaluations += 1

    def _solve(self, program: Any) -> None:
        import cvxpy as cp

        try:
            program.solve(solver=self.solver, **self.solver_options)
        except cp.DCPError as error:
            raise OptionError(
                f"the CVXPY problem is not convex by CVXPY's rules: {error}"
            ) from error
        except cp.SolverError as error:
            raise ResponseError(f"CVXPY's solver failed: {error}; try another solver=") from error
        if program.status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE):
            raise InfeasibleError(
                "the lower level, as stated in CVXPY, has no feasible point at this x",
                [constraint.dual_value for constraint in self.inequalities],
            )
        if program.status != cp.OPTIMAL:
            raise ResponseError(
                f"CVXPY ended with status {program.status!r}, expected 'optimal': check that the "
                "lower level is bounded, or try another solver= or tighter solver_options="
            )


def _match(level: Level, stated: Sequence[Any], what: str) -> None:
    shapes = [tuple(leaf.shape) for leaf in level.leaves]
    found = [tuple(each.shape) for each in stated]
    if shapes != found:
        raise OptionError(
            f"CvxpyResponse has {what} of shapes {found}, and the leaves of {level.name} have "
            f"{shapes}"
        )


def _match_constraints(name: str, values: Tensor | None, what: str, stated: Sequence[Any]) -> None:
    """A constraint that only one of them knows would be missing from the gradient of v."""
    expected = 0 if values is None else len(values)
    found = sum(constraint.size for constraint in stated)
    if found != expected:
        raise OptionError(
            f"CvxpyResponse has {what} of {found} entries, and the problem's {name} {expected}: "
            "state the same in both, entry for entry; domain= is for what lower_domain states"
        )


def _duals(constraints: Sequence[Any], like: Tensor) -> Tensor | None:
    if not constraints:
        return None
    parts = [
        np.asarray(constraint.dual_value, dtype=np.float64).reshape(-1)
        for constraint in constraints
    ]
    return torch.from_numpy(np.concatenate(parts)).to(like.device, like.dtype)
