"""The plan that tolls imply, and its profit: the program without its lower level."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from bilevel.problems.transport.network import TransportNetwork, require_network
from bilevel.problems.transport.tables import Array
from bilevel.problems.transport.tolls_routes import cheapest_routes


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
        Its profit is that of the exact lower level at ``load``, up to a relative error of the order
        of 1e-7 where routes tie.

    Raises
    ------
    ProblemError
        The tolls do not fit the network, or one is negative or not a number.
    """
    require_network(network)
    prices = network.per_link("toll", toll, infinite=True)
    routes = cheapest_routes(network, prices)
    pair = network.origin, network.destination
    share: Array = expit(network.alternative_cost - routes.price[pair])
    load = network.demand * share @ routes.walk(network)[0][pair]
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
    require_network(network)
    routes = cheapest_routes(network, network.per_link("toll", toll, infinite=True))
    pair = network.origin, network.destination
    return float(pair_profits(network, routes.price[pair], routes.cost[pair]).sum())


def pair_profits(network: TransportNetwork, price: Array, cost: Array) -> Array:
    """Profit from each pair that travels at a price by a route of a construction cost."""
    return network.demand * expit(network.alternative_cost - price) * (network.fare - cost)
