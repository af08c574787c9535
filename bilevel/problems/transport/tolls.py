"""The plan that tolls imply, and its profit: the program without its lower level."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from bilevel.problems.transport.network import IndexArray, TransportNetwork
from bilevel.problems.transport.tables import Array

TIE = 1e-7  # Routes whose prices differ by less than this, per unit of construction cost, tie.
ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TollPlan:
    r"""Tolls, and the plan whose capacities are the loads under them.

    Attributes
    ----------
    network : TransportNetwork
        The network.
    toll : numpy.ndarray
        Shape (E,): :math:`\lambda \ge 0`, infinite where no link is built.
    share : numpy.ndarray
        Shape (K,): the share f of each pair's demand that travels by the network.
    load : numpy.ndarray
        Shape (E,): the flow on each link, which is its capacity a.
    """

    network: TransportNetwork
    toll: Array
    share: Array
    load: Array

    @property
    def revenue(self) -> float:
        r"""Fares paid, :math:`\sum_k w_k m_k f_k`."""
        return float((self.network.demand * self.network.fare) @ self.share)

    @property
    def construction_cost(self) -> float:
        r"""Price of the capacities, :math:`\sum_e c_e a_e`."""
        return float(self.network.construction_cost @ self.load)

    @property
    def profit(self) -> float:
        """Revenue minus construction cost."""
        return self.revenue - self.construction_cost

    def __repr__(self) -> str:
        return (
            f"TollPlan(profit={self.profit:.6g}, revenue={self.revenue:.6g}, "
            f"construction_cost={self.construction_cost:.6g}, "
            f"links={np.count_nonzero(self.load)})"
        )


def toll_plan(network: TransportNetwork, toll: npt.ArrayLike) -> TollPlan:
    r"""Answer tolls as the travellers would, with capacities that just carry them.

    Let :math:`S_k(d + \lambda)` be the price of pair k's shortest route. Then
    :math:`f_k = \sigma(u_k - S_k)` travel by it, and with the loads as capacities these flows and
    :math:`\lambda` satisfy the optimality conditions of the travellers' problem: a toll only
    stands on a capacity that is used up. Lowering a capacity to its load changes neither, so the
    bilevel program is the maximisation over :math:`\lambda \in [0, \infty]^E` of

    .. math:: \sum_k w_k \, \sigma(u_k - S_k(d + \lambda)) \, (m_k - C_k(\lambda)),

    where :math:`C_k` is the construction cost along the route. Of routes that tie, the operator
    builds the one that is cheapest to construct.

    Parameters
    ----------
    network
        The network.
    toll
        Shape (E,): :math:`\lambda`; infinite where no link is built.

    Returns
    -------
    TollPlan
        Its profit is that of the exact lower level at ``load``, up to an error of the order of
        1e-7 where routes tie.

    Raises
    ------
    ProblemError
        The tolls do not fit the network, or one is negative or not a number.
    """
    prices = network.per_link("toll", toll, infinite=True)
    routes = cheapest_routes(network, prices)
    pair = network.origin, network.destination
    share: Array = expit(network.alternative_cost - routes.price[pair])
    load = network.demand * share @ routes.incidence(network)[pair]
    return TollPlan(network, prices, share, load)


def toll_profit(network: TransportNetwork, toll: npt.ArrayLike) -> float:
    """Compute the profit of :func:`toll_plan` without its loads.

    Parameters
    ----------
    network
        The network.
    toll
        Shape (E,): the tolls.

    Returns
    -------
    float
        The profit.

    Raises
    ------
    ProblemError
        See :func:`toll_plan`.
    """
    routes = cheapest_routes(network, network.per_link("toll", toll, infinite=True))
    pair = network.origin, network.destination
    return float(pair_profits(network, routes.price[pair], routes.cost[pair]).sum())


def pair_profits(network: TransportNetwork, price: Array, cost: Array) -> Array:
    """Profit from each pair that travels at a price by a route of a construction cost."""
    return network.demand * expit(network.alternative_cost - price) * (network.fare - cost)


class Routes(NamedTuple):
    """Cheapest routes between all nodes, each array of shape (nodes, nodes).

    Attributes
    ----------
    price
        Travel cost and tolls of the route, infinite where there is none.
    cost
        Its construction cost per unit of capacity.
    first
        The link by which it leaves; -1 where there is none.
    """

    price: Array
    cost: Array
    first: IndexArray

    def incidence(self, network: TransportNetwork) -> npt.NDArray[np.int8]:
        """Shape (nodes, nodes, E): which links the routes take."""
        return self.walk(network)[0]

    def walk(self, network: TransportNetwork) -> tuple[npt.NDArray[np.int8], IndexArray]:
        """The :meth:`incidence`, and the links by which the routes arrive, shaped as ``first``."""
        size = len(self.price)
        taken = np.zeros((size, size, len(network.tail)), dtype=np.int8)
        last = self.first.copy()
        origin, destination = np.nonzero(self.first >= 0)
        at = origin.copy()
        while len(at):
            link = self.first[at, destination]
            taken[origin, destination, link] = 1
            last[origin, destination] = link
            at = network.head[link]
            going = at != destination
            origin, destination, at = origin[going], destination[going], at[going]
        return taken, last


def cheapest_routes(network: TransportNetwork, toll: Array) -> Routes:
    """Floyd–Warshall on the prices d + toll + ``TIE`` c, which decides ties by construction."""
    size = len(network.nodes)
    merged = np.full((size, size), np.inf)
    cost = np.zeros((size, size))
    first = np.full((size, size), -1, dtype=np.intp)
    ends = network.tail, network.head
    merged[ends] = network.travel_cost + toll + TIE * network.construction_cost
    cost[ends] = network.construction_cost
    first[ends] = np.where(np.isfinite(toll), np.arange(len(toll)), -1)
    np.fill_diagonal(merged, 0.0)
    for k in range(size):
        via = merged[:, k, None] + merged[k]
        shorter = via < merged - ROUNDING
        cost = np.where(shorter, cost[:, k, None] + cost[k], cost)
        first = np.where(shorter, first[:, k, None], first)
        merged = np.where(shorter, via, merged)
    return Routes(merged - TIE * cost, cost, first)
