"""The passengers' exact response to capacities and tolls, by generating their routes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bilevel.errors import ResponseError, VariableError
from bilevel.options import check_positive
from bilevel.problems.transport.capacity import Capacity
from bilevel.problems.transport.interior_point import (
    RoutePoint,
    RouteProgram,
    RoutesError,
    solve_routes,
)
from bilevel.problems.transport.network import TransportNetwork, require_network
from bilevel.problems.transport.routes import (
    Array,
    RouteFinder,
    RouteLayout,
    RoutePool,
    Shortest,
)

#: Routes that cost more than the shortest of their pair by this, in units of the logit, are dropped
#: once they make up a share of the pool, for each drop costs a new layout.
_FAR, _SHARE = 0.1, 0.15
#: Accuracy of the tolls at which routes are sought first.
_COARSE = 1e-4


class Equilibrium(NamedTuple):
    r"""Passengers' answer, over the routes of a pool.

    Attributes
    ----------
    share : array of shape (K,)
        The part of each pair's demand that travels by the network, f.
    load, toll, capacity : arrays of shape (E,)
        Passengers on each link; the multiplier :math:`\lambda` of its capacity; that capacity.
    flow : array of shape (P,)
        Passengers on each route of ``layout``.
    layout : RouteLayout
    cost : array of shape (K,)
        Of each pair's shortest route, tolls included.
    """

    share: Array
    load: Array
    toll: Array
    capacity: Array
    flow: Array
    layout: RouteLayout
    cost: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Passengers:
    r"""The lower level of transport planning, solved to accuracy.

    Given capacities a, passengers share themselves between the network and the alternative, and
    choose routes, by

    .. math::
        v(a; u) = \min_{f, x} \; \sum_k w_k \bigl[ f_k \ln f_k + (1 - f_k) \ln (1 - f_k)
            - 1 + u_k (1 - f_k) \bigr] + \sum_e d_e \ell_e
        \quad \text{s.t.} \quad \ell \le a,

    with x routing the demand :math:`w_k f_k` of every pair, and :math:`\ell` its load on the
    links. At tolls :math:`\lambda`, the multipliers of the capacities, pairs no longer interact:
    their passengers take shortest routes at link costs :math:`d + \lambda`, of length
    :math:`S_k`, and :math:`f_k = \sigma(u_k - S_k)`. The dual function is therefore

    .. math::
        D(\lambda) = -\sum_k w_k \bigl[ 1 + \ln ( e^{-u_k} + e^{-S_k(d + \lambda)} ) \bigr]
            - \lambda^\top a,

    and bounds v from below at any tolls: that is the certificate, see :meth:`gap`.

    Routes are generated as they become shortest; over those known, an interior-point method solves
    the program with Newton systems of the links' size.

    Parameters
    ----------
    network : TransportNetwork
    tolerance : float
        Of the interior-point method, in units of the mean demand; a route that was not generated is
        shorter than those used by no more than ten times as much, relative to the largest toll
        where that is above 1.
    """

    network: TransportNetwork
    tolerance: float = 1e-9
    _find: RouteFinder = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_network(self.network)
        check_positive("tolerance", self.tolerance)
        object.__setattr__(self, "_find", RouteFinder(self.network))

    def respond(
        self, capacity: Array, alternative: Array, pool: RoutePool, toll: Array | None = None
    ) -> Equilibrium:
        """The response to positive capacities.

        Parameters
        ----------
        capacity : array of shape (E,)
        alternative : array of shape (K,)
            The costs u of the other mode, or what stands in their place in a perturbed response.
        pool : RoutePool
            Routes known so far; new ones are added.
        toll : array of shape (E,), optional
            Tolls near the solution.

        Raises
        ------
        VariableError
            A capacity is not positive and finite, an alternative not finite, or a toll negative, or
            their number is another one.
        ResponseError
            The tolerance was not reached.
        """
        links, pairs = len(self.network.tail), len(self.network.origin)
        capacity = _checked("capacity", capacity, links, above=0.0)
        alternative = _checked("alternative", alternative, pairs)
        if toll is not None:
            toll = _checked("toll", toll, links, least=0.0)
        return self.solve(Capacity(capacity), alternative, np.zeros(pairs), pool, toll)

    def solve(
        self,
        capacity: Capacity,
        alternative: Array,
        least: Array,
        pool: RoutePool,
        toll: Array | None = None,
    ) -> Equilibrium:
        """The response to capacities, or both together; ``least`` bounds the shares from below."""
        network = self.network
        unit = float(np.mean(network.demand))
        demand = network.demand / unit
        scaled = capacity.scaled(unit)
        warm = toll is not None
        toll = np.ones(len(network.tail)) if toll is None else toll
        if len(pool):
            self._prune(pool, toll)
        pool.add(self._find(network.travel_cost + toll), np.ones(len(demand), dtype=bool))
        while True:
            # Near the solution, tolls of low accuracy ask for many routes that are not needed.
            tolerances = (self.tolerance,) if warm else (_COARSE, self.tolerance)
            layout = pool.layout
            travel = layout.routes @ network.travel_cost
            program = RouteProgram(layout, travel, demand, alternative, least * demand, scaled)
            added = 0
            points = zip(
                tolerances,
                solve_routes(program, toll, warm=warm, tolerances=tolerances),
                strict=True,
            )
            try:
                for accuracy, point in points:
                    shortest = self._find(network.travel_cost + point.toll)
                    known = np.minimum.reduceat(travel + layout.routes @ point.toll, layout.first)
                    slack = 10 * accuracy * max(1.0, float(point.toll.max()))
                    added = pool.add(shortest, known - shortest.cost > slack)
                    if added:
                        break
            except RoutesError as error:
                missing = self._find(network.travel_cost + error.toll)
                if not pool.add(missing, np.ones(len(demand), dtype=bool)):
                    raise
                toll, warm = np.ones(len(toll)), False
                continue
            except ResponseError:
                if not warm:
                    raise
                toll, warm = np.ones(len(toll)), False  # the tolls were far from the solution
                continue
            toll, warm = point.toll, True
            if not added:
                return self._equilibrium(point, shortest, layout, unit)

    def gap(self, capacity: Array, alternative: Array, answer: Equilibrium) -> float:
        """The certificate: primal less dual value, an upper bound on the response's error in v."""
        network = self.network
        primal = self.value(answer.share, alternative) + network.travel_cost @ answer.load
        offered = np.logaddexp(-alternative, -answer.cost)
        dual = -(network.demand @ (1 + offered)) - answer.toll @ capacity
        return float(primal - dual)

    def value(self, share: Array, alternative: Array) -> float:
        """The lower objective, travel costs left out."""
        rest = 1 - share
        entropy = share * np.log(share) + rest * np.log(rest)
        return float(self.network.demand @ (entropy - 1 + alternative * rest))

    def _prune(self, pool: RoutePool, toll: Array) -> None:
        """Drop routes that are far from the shortest of their pair, where they are many."""
        layout = pool.layout
        cost = layout.routes @ (self.network.travel_cost + toll)
        near = cost <= np.minimum.reduceat(cost, layout.first)[layout.local] + _FAR
        if np.mean(near) < 1 - _SHARE:
            pool.retain(near)

    def _equilibrium(
        self, point: RoutePoint, shortest: Shortest, layout: RouteLayout, unit: float
    ) -> Equilibrium:
        share = point.served / (self.network.demand / unit)
        return Equilibrium(
            share=np.clip(share, np.finfo(float).tiny, np.nextafter(1.0, 0.0)),
            load=unit * point.load,
            toll=point.toll,
            capacity=unit * point.capacity,
            flow=unit * point.flow,
            layout=layout,
            cost=shortest.cost,
        )


def _checked(
    name: str, values: npt.ArrayLike, count: int, *, above: float = -np.inf, least: float = -np.inf
) -> Array:
    """Values as finite float64, ``count`` of them, beyond a bound or at least another."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise VariableError(f"{name} has shape {array.shape}, expected ({count},)")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > above) & (array >= least)))
    if len(wrong):
        bound = " > 0" if above == 0 else " >= 0" if least == 0 else ""
        raise VariableError(
            f"{name}[{wrong[0]}] is {array[wrong[0]]:g}, expected a finite number{bound}"
        )
    return array
