"""v(x) = min_y g with its first and second derivatives, from an exact response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bilevel.calculus import Array
from bilevel.errors import InfeasibleError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.implicit import ZERO, Mask, lower_system, motion
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.responses.exact import Exact
from bilevel.state import State, Track

#: Relative residual that a relaxed response has to reach, usually by far: where more constraints
#: meet than y has entries, as at the edge of the feasible x, their order is lost in rounding.
_RELAXED_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Value:
    """The value function at one x.

    Attributes
    ----------
    value
        v(x).
    gradient
        ∇v(x).
    largest_multiplier
        the largest entry of |μ| and |ν|.
    """

    value: float
    gradient: Array
    largest_multiplier: float


class ValueFunction:
    r"""The value function at the x in the state's leaves.

    .. math::
        v(x) = \min_{y \in Y} g + \rho\,(\|[c]_+\|_1 + \|h\|_1), \qquad
        \nabla v(x) = \nabla_x g(x, y_g) + \langle \mu_g, \nabla_x c(x, y_g) \rangle
        + \langle \nu_g, \nabla_x h(x, y_g) \rangle.

    With ρ = ``elastic`` the lower level's constraints are relaxed by an exact penalty: v is the
    true value function wherever the multipliers stay below ρ, and goes on smoothly where no
    feasible y exists. Without, the problem's response is used as it is.

    Calls leave the lower level's leaves as they were.
    """

    def __init__(
        self, problem: BilevelProblem, state: State, *, elastic: float | None = None
    ) -> None:
        self.problem = problem
        self.state = state
        self.evaluation = Evaluation(problem, state)
        self.elastic = elastic
        relaxed = Exact(elastic=elastic, tolerance=_RELAXED_TOLERANCE)
        self.response = state.response if elastic is None else relaxed
        self._last: tuple[bytes, Value] | None = None

    def __call__(self) -> Value:
        """Value and gradient; solved once for each x."""
        key = self.state.upper.vector().tobytes()
        if self._last is None or self._last[0] != key:
            with self.state.at_original() as track:
                self._respond(track)
                value, slope = lagrangian(self.evaluation, track)
                self._last = (key, Value(value, slope, _largest(track)))
        return self._last[1]

    def _respond(self, track: Track) -> None:
        start = self.state.lower.values()
        try:
            self.response.update(self.problem, self.state, track, 0.0, [self.evaluation])
        except (InfeasibleError, ResponseError):
            if track.inequality_multipliers is None and track.equality_multipliers is None:
                raise
            # A poor warm start is the one cause that another attempt mends.
            self.state.lower.assign(start)
            track.inequality_multipliers = track.equality_multipliers = None
            self.response.update(self.problem, self.state, track, 0.0, [self.evaluation])

    def hessian(self) -> Array:
        r"""∇²v(x) at fixed strongly active constraints, by the implicit function theorem.

        .. math:: \nabla^2 v = \begin{pmatrix} I \\ D \end{pmatrix}^{\!\top}
            \nabla^2_{(x, y)} L_g \begin{pmatrix} I \\ D \end{pmatrix},
            \qquad D = \frac{d y_g}{d x}.
        """
        self()
        with self.state.at_original() as track:
            system = lower_system(self.problem, self.state, track, self.evaluation)
        rows = [
            system.inequality_jacobian[system.pressing & self._unsaturated(system.mu)],
            system.equality_jacobian[self._unsaturated(system.nu)],
        ]
        moved = motion(system, np.concatenate(rows)).jacobian
        tangent = np.concatenate([np.eye(self.state.upper.size), moved])
        curvature: Array = tangent.T @ system.second @ tangent
        return curvature

    def _unsaturated(self, multipliers: Array) -> Mask:
        """Constraints that are not violated at the relaxation's full price."""
        price = np.inf if self.elastic is None else self.elastic * (1.0 - ZERO)
        unsaturated: Mask = np.abs(multipliers) < price
        return unsaturated


def _largest(track: Track) -> float:
    both = (track.inequality_multipliers, track.equality_multipliers)
    return max(
        (float(each.abs().max()) for each in both if each is not None and len(each)), default=0.0
    )
