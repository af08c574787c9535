"""How far a point is from a stationary one of the penalised problem, from fresh responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bilevel.calculus import Array, gradient
from bilevel.errors import NotApplicableError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.program import joint_program
from bilevel.responses.base import Response, fresh_track
from bilevel.responses.exact import EXACT_LIMIT
from bilevel.state import State
from bilevel.variables import unflatten

#: Constraints within this distance of equality count as active.
_ACTIVE = 1e-6
#: Relative accuracy of exact responses and their multipliers.
_ACCURACY = 1e-10


@dataclass(frozen=True)
class Stationarity:
    r"""A residual of stationarity, and what it is small in comparison with.

    Attributes
    ----------
    residual : float
        The norm of the residual.
    size : float
        The norms of the two terms that cancel in it: :math:`\nabla f`, and the rest, which for
        the gradient of the penalised value is
        :math:`\gamma\,[\nabla_x L_g(x, y_\gamma) - \nabla v(x)]`. Both stay bounded as γ grows.
    resolution : float
        What a relative error of 1e-10 in the responses makes of
        :math:`\gamma\,\nabla_x L_g - \gamma\,\nabla v`, whose terms grow with γ.
    """

    residual: float
    size: float
    resolution: float

    def within(self, tolerance: float) -> bool:
        """Whether the residual is at most ``tolerance * (1 + size)``, up to its resolution."""
        return self.residual <= tolerance * (1.0 + self.size) + self.resolution


def resolution(penalty: float, *gradients: Array) -> float:
    """What the accuracy of exact responses leaves unknown of γ times a difference of gradients."""
    return _ACCURACY * penalty * sum(map(_norm, gradients))


def fresh_stationarity(
    problem: BilevelProblem,
    state: State,
    response: Response,
    penalty: float,
    value_gradient: Array,
) -> Stationarity:
    """The ``stationarity`` of a :class:`~bilevel.Solution`; moves y's leaves.

    Where an outer step ends at points in (x, y) whose multipliers need not be unique, as with upper
    constraints, those that fit best are found for (x, y).
    """
    if not state.upper.leaves:
        return Stationarity(0.0, 0.0, 0.0)
    joint = problem.upper_constraints is not None or state.outer.ends_in_both
    if state.upper.size + state.lower.size > EXACT_LIMIT:  # dense derivatives are out of reach
        own = state.outer.stationarity(problem, state, penalty, value_gradient)
        if own is not None:
            return own
    if joint:
        return _joint_stationarity(problem, state, penalty, value_gradient)
    if penalty == 0.0:  # of a method that finds its penalty itself
        raise NotApplicableError("the last step's penalty is 0")
    evaluation, track = Evaluation(problem, state), fresh_track(response, problem, state)
    response.update(problem, state, track, 1.0 / penalty, [evaluation])
    with state.lower.frozen():
        kept = gradient(evaluation.upper(through_x=True), state.upper.leaves)
    _, slope = lagrangian(evaluation, track)
    return Stationarity(
        residual=_projected_norm(state, kept + penalty * (slope - value_gradient)),
        size=_norm(kept) + penalty * _norm(slope - value_gradient),
        resolution=resolution(penalty, slope, value_gradient),
    )


def _projected_norm(state: State, outer: Array) -> float:
    level = state.upper
    level.clear_gradients()
    for leaf, part in zip(level.leaves, unflatten(outer, level.leaves), strict=True):
        leaf.grad = part
    norm = float(level.projected_gradient_norm())
    level.clear_gradients()
    return norm


def _joint_stationarity(
    problem: BilevelProblem, state: State, penalty: float, value_gradient: Array
) -> Stationarity:
    """Distance of -∇[f + γ(g - v)] to the cone of the active constraints' gradients, in (x, y)."""
    from scipy.optimize import nnls

    entries = state.upper.size + state.lower.size
    if entries > EXACT_LIMIT:
        raise NotApplicableError(
            f"the KKT residual in (x, y) takes dense derivatives of {entries} entries, expected at "
            f"most {EXACT_LIMIT}"
        )
    evaluation = Evaluation(problem, state, augmented=False)
    program = joint_program(problem, state, lambda: evaluation.lower(through_x=True))
    z = program.point()
    at = program.evaluate(z)
    slope = at.gradient.copy()
    slope[: len(value_gradient)] -= value_gradient
    kept = gradient(evaluation.upper(through_x=True), state.upper.leaves + state.lower.leaves)
    total = kept + penalty * slope
    identity = np.eye(len(z))
    rows = np.concatenate(
        [
            at.inequality_jacobian[at.inequalities >= -_ACTIVE],
            identity[z >= program.upper - _ACTIVE],
            -identity[z <= program.lower + _ACTIVE],
            at.equality_jacobian,
            -at.equality_jacobian,
        ]
    )
    normal = np.zeros_like(total)
    if len(rows):
        try:
            normal = rows.T @ nnls(rows.T, -total, maxiter=10 * len(rows))[0]
        except RuntimeError as error:
            raise ResponseError("the multipliers that fit best in (x, y) were not found") from error
    return Stationarity(
        residual=_norm(total + normal),
        size=_norm(kept) + _norm(penalty * slope + normal),
        resolution=resolution(penalty, at.gradient, value_gradient),
    )


def _norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))
