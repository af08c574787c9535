"""All tolls at once, while the routes stay what they are: a linear program in a trust region."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.special import expit

from bilevel.problems.transport.network import IndexArray, TransportNetwork
from bilevel.problems.transport.tables import Array
from bilevel.problems.transport.tolls import cheapest_routes

NEGLIGIBLE = 1e-7
FEASIBLE = 1e-10
SAME_COST = 1e-9


class RoutingModel(NamedTuple):
    r"""The profit about given tolls as a linear function of their change.

    The routes stay what they are while the change :math:`\delta` has :math:`A \delta \le s`.

    Attributes
    ----------
    gradient : numpy.ndarray
        Shape (E,).
    detours : scipy.sparse.csr_array
        Shape (R, E): A, the links of a route less those of one that costs more to construct.
    slack : numpy.ndarray
        Shape (R,): by how much the latter is dearer to travel.
    """

    gradient: Array
    detours: csr_array
    slack: Array

    def step(self, toll: Array, radius: float) -> Array | None:
        """Best change of the finite tolls by at most ``radius``; ``None`` if the solver fails."""
        movable = np.isfinite(toll)
        lower = np.where(movable, np.maximum(-radius, -toll), 0.0)
        upper = np.where(movable, radius, 0.0)
        relevant = self.slack < radius / 2
        while True:  # Most constraints never bind: add those that turn out violated.
            solution = linprog(
                -self.gradient,
                A_ub=self.detours[relevant],  # type: ignore[call-overload]
                b_ub=self.slack[relevant],
                bounds=np.column_stack([lower, upper]),
                method="highs-ds",
                options={"primal_feasibility_tolerance": FEASIBLE},
            )
            if solution.x is None:
                return None
            violated = (self.detours @ solution.x > self.slack + 10 * FEASIBLE) & ~relevant
            if not np.any(violated):
                return np.asarray(solution.x)
            relevant |= violated


def routing_model(network: TransportNetwork, toll: Array, reach: float) -> RoutingModel:
    r"""Linearise the profit with the routes held.

    At fixed routes :math:`P_k` the profit is smooth, with gradient
    :math:`-\sum_{k : e \in P_k} w_k f_k (1 - f_k)(m_k - C_k)`. It falls by a jump where a pair
    changes to a route that costs more to construct, and the best tolls lie on such edges: routes
    tie there. The constraints keep every pair from it. The routes considered go by one link off
    the shortest route and are otherwise shortest.

    Parameters
    ----------
    network
        The network.
    toll
        Shape (E,): the tolls.
    reach
        How much dearer a route may be that the model is to know of.
    """
    routes = cheapest_routes(network, toll)
    taken, last = routes.walk(network)
    pair = network.origin, network.destination
    share = expit(network.alternative_cost - routes.price[pair])
    worth = network.demand * share * (network.fare - routes.cost[pair])
    gradient = -(worth * (1 - share)) @ taken[pair]

    counting = np.zeros(routes.price.shape, dtype=bool)
    counting[pair] = np.abs(worth) > NEGLIGIBLE
    origin, destination = np.nonzero(_with_parts(network, counting, routes.first, last))
    before, after = np.ix_(origin, network.tail), np.ix_(network.head, destination)
    through = routes.price[before] + (network.travel_cost + toll) + routes.price[after].T
    slack = through - routes.price[origin, destination][:, None]
    cost = routes.cost[before] + network.construction_cost + routes.cost[after].T
    which, link = np.nonzero(
        (slack < reach) & (cost > routes.cost[origin, destination][:, None] + SAME_COST)
    )
    # A detour that shares its ends with the route belongs to the part in between as well.
    o, t, i, j = origin[which], destination[which], network.tail[link], network.head[link]
    leaving = np.where(o == i, link, routes.first[o, i])
    arriving = np.where(j == t, link, last[j, t])
    kept = (leaving != routes.first[o, t]) & (arriving != last[o, t])
    which, link, o, t, i, j = (each[kept] for each in (which, link, o, t, i, j))
    differences = taken[o, t] - taken[o, i] - taken[j, t]
    differences[np.arange(len(link)), link] -= 1
    first = _distinct(differences)
    return RoutingModel(
        gradient,
        csr_array(differences[first].astype(np.float64)),
        np.maximum(slack[which, link][first], 0.0),
    )


def _with_parts(
    network: TransportNetwork, counting: npt.NDArray[np.bool_], first: IndexArray, last: IndexArray
) -> npt.NDArray[np.bool_]:
    """The marked pairs of nodes, and those between which their routes pass."""
    marked = counting & (first >= 0)
    while True:
        origin, destination = np.nonzero(marked)
        parts = marked.copy()
        parts[network.head[first[origin, destination]], destination] = True
        parts[origin, network.tail[last[origin, destination]]] = True
        np.fill_diagonal(parts, False)
        if np.array_equal(parts, marked):
            return marked
        marked = parts


def _distinct(rows: npt.NDArray[np.int8]) -> IndexArray:
    """Indices of rows that differ, told apart by their products with a random vector."""
    keys = rows @ np.random.default_rng(0).random(rows.shape[1])
    first: IndexArray = np.unique(keys.round(9), return_index=True)[1]
    return first
