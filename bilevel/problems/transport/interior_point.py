"""Mehrotra's method on the routes of a pool: the follower's program, and the leader's with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from bilevel.errors import ResponseError
from bilevel.problems.transport.capacity import Capacity
from bilevel.problems.transport.routes import Array, RouteLayout

#: Tolls, relative to the costs, that prove that no flows on the routes keep all bounds.
_UNBOUNDED = 1e6


class RoutesError(ResponseError):
    """The routes of a pool cannot carry the least shares within the ceilings and the budget.

    Tolls grow without bound there; at ``toll``, along which they do and which outweighs all costs,
    shortest routes are those that are missing, if any.
    """

    def __init__(self, toll: Array) -> None:
        super().__init__(
            "the least shares cannot be carried by routes that passengers would take within the "
            "ceilings and the budget: lower the shares, or raise the other limits"
        )
        self.toll = toll


class RouteProgram(NamedTuple):
    r"""Passengers' routes over a pool, at capacities given or chosen.

    .. math::
        \min_{h \ge 0,\, a} \; \sum_k \Bigl[ q_k \ln \tfrac{q_k}{w_k}
        + (w_k - q_k) \ln \tfrac{w_k - q_k}{w_k} - u_k q_k \Bigr] + \sum_p D_p h_p + \psi(a)
        \quad \text{s.t.} \quad A h \le a, \quad q \ge q_{\min}, \quad v(a) \ge 0,

    where :math:`q_k` is the sum of h over pair k's routes, and :math:`\psi` and v are the
    ``capacity``'s.

    Attributes
    ----------
    layout : RouteLayout
        A, and which routes serve which pair.
    travel_cost : array of shape (P,)
        D.
    demand, alternative, least : arrays of shape (K,)
        w, u and :math:`q_{\min}`, which is 0 where there is no bound, and less than w.
    capacity : Capacity
    """

    layout: RouteLayout
    travel_cost: Array
    demand: Array
    alternative: Array
    least: Array
    capacity: Capacity


class RoutePoint(NamedTuple):
    """A solution: route flows (P,), demand served (K,), capacities, loads and tolls (E,)."""

    flow: Array
    served: Array
    capacity: Array
    load: Array
    toll: Array


def solve_routes(
    program: RouteProgram,
    toll: Array,
    *,
    warm: bool,
    tolerances: Sequence[float],
    max_iterations: int = 200,
) -> Iterator[RoutePoint]:
    r"""Solve a program over routes by a primal-dual interior-point method.

    Route flows are eliminated pair by pair, capacities link by link, so that the Newton systems
    have the tolls' size. The share not served is carried beside that served: either may be far
    smaller than a rounding error of the other.

    Parameters
    ----------
    program : RouteProgram
    toll : array of shape (E,)
        Multipliers of :math:`A h \le a` to start from.
    warm : bool
        Whether those are near the solution.
    tolerances : sequence of float
        Decreasing. Bounds on the mean product of an inequality and its multiplier (each may be ten
        times as large), on violated capacity, and, times 100, on the dual residual relative to the
        largest toll.
    max_iterations : int

    Yields
    ------
    RoutePoint
        One for each tolerance.

    Raises
    ------
    ResponseError
        A tolerance was not reached.
    RoutesError
        The routes cannot carry what is asked for.

    Notes
    -----
    Source: Mehrotra 1992, SIAM J. Optimization 2(4); Nocedal and Wright 2006, algorithm 16.4.
    """
    point, remaining = _Iterate(program, toll, warm), list(tolerances)
    final = remaining[-1]
    costs = 1.0 + program.travel_cost.max() + np.abs(program.alternative).max()
    for _ in range(max_iterations):
        residual = point.residual(final)
        if point.toll.max() > _UNBOUNDED * costs:
            raise RoutesError(1e3 * costs * point.toll / point.toll.max())
        while remaining and residual <= remaining[0] / final:
            remaining.pop(0)
            yield RoutePoint(point.values[0], point.q, point.a, point.load, point.toll)
        if not remaining:
            return
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            try:
                _advance(point, final)
            except (LinAlgError, ValueError):  # singular, or not finite
                break
    raise ResponseError(
        f"the routes' program was solved to {residual:.1e} times its tolerance {final:.0e} "
        "only: the costs may differ by too many orders of magnitude (they are in units of the "
        "logit, in which a difference of 1 changes the odds by the factor e), or limits may leave "
        "too little room between them"
    )


def _advance(point: _Iterate, final: float) -> None:
    """Mehrotra's predictor and corrector, and the step.

    Raises
    ------
    LinAlgError, ValueError
        The Newton system is singular, or not finite.
    """
    products = point.products()
    system = _NewtonSystem(point)
    step = system.direction(-products)
    length = point.longest(step)
    size, predicted = float(np.mean(products)), point.mean_product(step, length)
    centred = max((predicted / size) ** 3 * size, 0.3 * final)
    # The second-order effect of that part of the step which is taken.
    reduction = max(1 - centred / size, 0.0)
    step = system.direction(centred - products - reduction**2 * step.second_order())
    point.move(step, min(1.0, 0.99 * point.longest(step)))


class _Step(NamedTuple):
    """Changes of the inequalities' values and multipliers, in the order of ``_Iterate.values``."""

    values: list[Array]
    multipliers: list[Array]
    served: Array
    capacity: Array

    def second_order(self) -> Array:
        products: Array = np.concatenate(self.values) * np.concatenate(self.multipliers)
        return products


class _Iterate:
    """Route flows h, spare capacity s, capacities a, and the multipliers of all inequalities."""

    def __init__(self, program: RouteProgram, toll: Array, warm: bool) -> None:
        self.program = program
        layout, capacity, w = program.layout, program.capacity, program.demand
        product, temperature = (1e-2, 0.05) if warm else (1.0, 1.0)
        cost = program.travel_cost + layout.routes @ toll
        shortest = np.minimum.reduceat(cost, layout.first)
        excess = cost - shortest[layout.local]
        odds = np.exp(-excess / temperature)
        share = odds / layout.per_pair(odds)[layout.local]
        # On the central path a route that is not worth its cost carries product / (its loss).
        loss = excess + np.maximum(shortest - program.alternative, 0.0)[layout.local]
        served = 0.8 * w / (1 + np.exp(np.clip(shortest - program.alternative, -700.0, 700.0)))
        self.bounded = np.flatnonzero(program.least > 0)
        served = np.maximum(served, program.least + 1e-3 * (w - program.least))
        most = np.minimum(0.1 * w, 0.5 * (w - served)) / layout.count
        spread = np.minimum(product, most)[layout.local] / (1.0 + loss)
        h = share * served[layout.local] + spread
        self.values = [h]
        self._add_up()
        self.unserved = w - self.q
        dual = np.append(toll, np.zeros(len(capacity.rows)))
        self.a = capacity.start(self.load + product / np.maximum(toll, 0.1), product)
        spare = np.maximum(-self.excess(), product / np.maximum(dual, 0.1))
        margin = (self.q - program.least)[self.bounded]
        self.values += [spare, margin, capacity.values(self.a)]
        dual = np.maximum(dual, product / spare)
        slope = capacity.slope(self.a, _adjoint(capacity, dual))
        of_bounds = np.maximum(capacity.change(slope), product / self.values[3])
        self.multipliers = [np.zeros_like(h), dual, product / margin, of_bounds]
        self.multipliers[0] = np.maximum(self.dual_residual(), product / h)

    @property
    def toll(self) -> Array:
        toll: Array = self.multipliers[1][: len(self.a)]
        return toll

    def excess(self) -> Array:
        """By how much each row with the loads exceeds its bound."""
        rows = self.program.capacity.rows
        of_rows = -rows @ self.a - self.program.capacity.offset
        excess: Array = np.concatenate([self.load - self.a, of_rows])
        return excess

    def products(self) -> Array:
        products: Array = np.concatenate(self.values) * np.concatenate(self.multipliers)
        return products

    def mean_product(self, step: _Step, length: float) -> float:
        """The mean of the products after a step."""
        values = np.concatenate(self.values) + length * np.concatenate(step.values)
        multipliers = np.concatenate(self.multipliers)
        multipliers = multipliers + length * np.concatenate(step.multipliers)
        return float(np.mean(values * multipliers))

    def dual_residual(self) -> Array:
        """Gradient of the Lagrangian in h."""
        program, layout = self.program, self.program.layout
        of_routes, _, of_least, _ = self.multipliers
        marginal = np.log(self.q / self.unserved) - program.alternative
        marginal[self.bounded] -= of_least
        cost = program.travel_cost + layout.routes @ self.toll
        slope: Array = marginal[layout.local] + cost - of_routes
        return slope

    def capacity_residual(self) -> Array:
        """Gradient of the Lagrangian in a."""
        capacity, (_, dual, _, of_bounds) = self.program.capacity, self.multipliers
        pull = capacity.adjoint(of_bounds) + _adjoint(capacity, dual)
        return capacity.slope(self.a, pull)

    def residual(self, tolerance: float) -> float:
        """The largest violation of the optimality conditions, in multiples of the tolerance."""
        worst = max(np.abs(self.dual_residual()).max(), np.abs(self.capacity_residual()).max())
        violated = np.abs(self.excess() + self.values[1]).max()
        dual = 1e-2 * worst / max(1.0, self.toll.max())
        products = self.products()
        return float(max(products.mean(), 0.1 * products.max(), violated, dual) / tolerance)

    def longest(self, step: _Step) -> float:
        """The largest step that keeps every value and multiplier non-negative."""
        v = np.concatenate([*self.values, *self.multipliers, self.unserved])
        dv = np.concatenate([*step.values, *step.multipliers, -step.served])
        falling = dv < 0
        return min(1.0, float(np.min(v[falling] / -dv[falling], initial=np.inf)))

    def move(self, step: _Step, length: float) -> None:
        for at, changes in ((self.values, step.values), (self.multipliers, step.multipliers)):
            for i, change in enumerate(changes):
                at[i] = at[i] + length * change
        self.a = self.a + length * step.capacity
        self.unserved = self.unserved - length * step.served
        self._add_up()

    def _add_up(self) -> None:
        self.q = self.program.layout.per_pair(self.values[0])
        self.load = self.program.layout.links @ self.values[0]


class _NewtonSystem:
    r"""The linearised optimality conditions at an iterate, reduced to the tolls and factorised.

    Pair k's Hessian is :math:`\Theta + \phi_k'' 1 1^\top` with diagonal :math:`\Theta`. With
    t its inverse diagonal, :math:`\sigma = 1^\top t` and :math:`\pi = t / \sigma`, its inverse is
    :math:`\sigma (\mathrm{diag}(\pi) - \pi \pi^\top) + \pi \pi^\top / (1/\sigma + \phi_k'')`, in
    which nothing cancels.
    """

    def __init__(self, point: _Iterate) -> None:
        self.point = point
        program, layout = point.program, point.program.layout
        h, spare, margin, room = point.values
        of_routes, dual, of_least, of_room = point.multipliers
        capacity = program.capacity
        curvature = program.demand / (point.q * point.unserved)
        curvature[point.bounded] += of_least / margin
        self.t = h / of_routes
        total = layout.per_pair(self.t)
        self.pi = self.t / total[layout.local]
        self.weight = 1 / (1 / total + curvature)
        self.mobility = capacity.mobility(of_room / room)
        self.slackness = spare / dual
        links = len(point.a)
        coupling = self.mobility * capacity.rows
        matrix = np.diag(self.slackness)
        matrix[:links, :links] += layout.normal_matrix(self.pi, self.t, self.weight)
        matrix[:links, :links] += np.diag(self.mobility)
        matrix[links:, :links] = coupling
        matrix[:links, links:] = coupling.T
        matrix[links:, links:] += coupling @ capacity.rows.T
        self.factor = _factorised(matrix)
        self.of_routes = point.dual_residual()
        self.of_capacity = point.capacity_residual()
        self.of_rows = point.excess() + spare
        self.cuts = np.cumsum([len(each) for each in point.values])[:-1]

    def direction(self, target: Array) -> _Step:
        """The step that removes all residuals and adds ``target`` to the products."""
        point, layout = self.point, self.point.program.layout
        capacity, links = point.program.capacity, len(point.a)
        of_h, of_s, of_q, of_a = relative = [
            part / value
            for part, value in zip(np.split(target, self.cuts), point.values, strict=True)
        ]
        pull = np.zeros_like(point.q)
        pull[point.bounded] = of_q
        towards = of_h - self.of_routes + pull[layout.local]
        lead = self.mobility * (capacity.adjoint(of_a) - self.of_capacity)
        right = self.of_rows + of_s * self.slackness
        right[:links] += layout.links @ self._solve(towards)[0] - lead
        right[links:] -= capacity.rows @ lead
        dual = cho_solve(self.factor, right)
        dh, dq = self._solve(towards - layout.routes @ dual[:links])
        da = self.mobility * _adjoint(capacity, dual) + lead
        values = [dh, self.slackness * (of_s - dual), dq[point.bounded], capacity.change(da)]
        multipliers = [
            part - multiplier / value * change
            for part, multiplier, value, change in zip(
                relative, point.multipliers, point.values, values, strict=True
            )
        ]
        multipliers[1] = dual
        return _Step(values, multipliers, dq, da)

    def _solve(self, r: Array) -> tuple[Array, Array]:
        """The inverse of the pairs' Hessians times r, and its sum over each pair's routes."""
        local = self.point.program.layout.local
        mean = self.point.program.layout.per_pair(self.pi * r)
        total = mean * self.weight
        return self.t * (r - mean[local]) + self.pi * total[local], total


def _factorised(matrix: Array) -> tuple[Array, bool]:
    """Cholesky factors; of a matrix slightly raised where rounding leaves it no positive one.

    So it is at the end where tolls are not unique. The next residuals tell what that costs.
    """
    diagonal = matrix.diagonal().copy()
    for raised in (0.0, 1e-14, 1e-12, 1e-10):
        np.fill_diagonal(matrix, (1 + raised) * diagonal)
        with suppress(LinAlgError):
            factor: tuple[Array, bool] = cho_factor(matrix)
            return factor
    np.fill_diagonal(matrix, (1 + 1e-8) * diagonal)
    return cho_factor(matrix)


def _adjoint(capacity: Capacity, dual: Array) -> Array:
    """The transpose of the rows' derivative in a, times their multipliers."""
    links = capacity.rows.shape[1]
    return dual[:links] + dual[links:] @ capacity.rows
