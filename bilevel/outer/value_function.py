"""v(x) = min_y g with its first and second derivatives, from an exact response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.calculus import Array, gradient, hessian, jacobian
from bilevel.errors import InfeasibleError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.problem import BilevelProblem
from bilevel.program import lower_equalities, lower_inequalities
from bilevel.responses.exact import Exact
from bilevel.state import State, Track

Mask: TypeAlias = NDArray[np.bool_]

#: Multipliers below this share of the largest count as zero.
_ZERO = 1e-9


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
        self.response = state.response if elastic is None else Exact(elastic=elastic)
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

        .. math:: \nabla^2 v = L_{xx} -
            \begin{pmatrix} L_{yx} \\ A_x \end{pmatrix}^{\!\top}
            \begin{pmatrix} L_{yy} & A_y^\top \\ A_y & 0 \end{pmatrix}^{-1}
            \begin{pmatrix} L_{yx} \\ A_x \end{pmatrix}

        with L the lower Lagrangian and A the Jacobian of the strongly active constraints.
        """
        self()
        state = self.state
        n = state.upper.size
        with state.at_original() as track:
            leaves = state.upper.leaves + state.lower.leaves
            mu, nu = track.inequality_multipliers, track.equality_multipliers
            c, h = lower_inequalities(self.problem, state), lower_equalities(self.problem, state)
            total = self.evaluation.lower(through_x=True)
            for multipliers, values in ((mu, c), (nu, h)):
                if multipliers is not None:
                    total = total + torch.dot(multipliers, values)
            second = hessian(total, leaves)
            active = np.concatenate(
                [
                    jacobian(c, leaves)[self._strongly_active(mu, len(c))],
                    jacobian(h, leaves)[self._unsaturated(nu, len(h))],
                ]
            )
            free = self._free_entries(gradient(total, state.lower.leaves))
        coupling = np.concatenate([second[n:, :n][free], active[:, :n]])
        rows = active[:, n:][:, free]
        zeros = np.zeros((len(rows), len(rows)))
        system = np.block([[second[n:, n:][np.ix_(free, free)], rows.T], [rows, zeros]])
        if not len(system):
            return second[:n, :n]
        solved, *_ = np.linalg.lstsq(system, coupling, rcond=1e-12)
        inner: Array = second[:n, :n] - coupling.T @ solved
        symmetric: Array = 0.5 * (inner + inner.T)
        return symmetric

    def _strongly_active(self, mu: Tensor | None, count: int) -> Mask:
        if mu is None:
            return np.zeros(count, dtype=bool)
        sizes = mu.cpu().numpy()
        strong: Mask = self._unsaturated(mu, count) & (sizes > _ZERO * sizes.max(initial=1.0))
        return strong

    def _unsaturated(self, multipliers: Tensor | None, count: int) -> Mask:
        """Constraints that are not violated at the relaxation's full price."""
        if multipliers is None or self.elastic is None:
            return np.ones(count, dtype=bool)
        unsaturated: Mask = np.abs(multipliers.cpu().numpy()) < self.elastic * (1.0 - _ZERO)
        return unsaturated

    def _free_entries(self, reduced: Array) -> Mask:
        """Entries of y that no bound holds; ``reduced`` is the gradient of the Lagrangian there."""
        low, high = self.state.lower.bounds()
        y = self.state.lower.vector()
        slack = 1e-12 * np.maximum(1.0, np.abs(y))
        pressing = np.abs(reduced) > _ZERO * np.abs(reduced).max(initial=1.0)
        held: Mask = ((y <= low + slack) | (y >= high - slack)) & (pressing | (low == high))
        return ~held


def _largest(track: Track) -> float:
    both = (track.inequality_multipliers, track.equality_multipliers)
    return max(
        (float(each.abs().max()) for each in both if each is not None and len(each)), default=0.0
    )
