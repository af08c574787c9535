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
from bilevel.problems.transport.tolls_routes import Routes, cheapest_routes

NEGLIGIBLE = 1e-8  # Of the largest profit from a pair.
FEASIBLE = 1e-10
SAME_COST = 1e-9  # Of the dearest link's.


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
    taken, first = routes.walk(network)
    pair = network.origin, network.destination
    share = expit(network.alternative_cost - routes.price[pair])
    worth = network.demand * share * (network.fare - routes.cost[pair])
    gradient = -(worth * (1 - share)) @ taken[pair]

    counting = np.zeros(routes.price.shape, dtype=bool)
    counting[pair] = np.abs(worth) > NEGLIGIBLE * np.abs(worth).max()
    marked = _with_parts(network, counting, first, routes.last)
    o, t, link, slack = _detours(network, toll, routes, marked, reach)
    i, j = network.tail[link], network.head[link]
    # A detour that shares its ends with the route belongs to the part in between as well.
    leaving = np.where(o == i, link, first[o, i])
    arriving = np.where(j == t, link, routes.last[j, t])
    dearer = routes.cost[o, i] + network.construction_cost[link] + routes.cost[j, t]
    same = SAME_COST * network.construction_cost.max()
    kept = (leaving != first[o, t]) & (arriving != routes.last[o, t])
    kept &= dearer > routes.cost[o, t] + same
    # Rows that are alike are told apart from others by their products with a random vector.
    random = np.random.default_rng(0).random(len(toll))
    key = routes.along(network, random)
    keys = (key[o, t] - key[o, i] - key[j, t] - random[link])[kept].round(9)
    distinct = np.flatnonzero(kept)[np.unique(keys, return_index=True)[1]]
    o, t, i, j, link = (each[distinct] for each in (o, t, i, j, link))
    differences = taken[o, t] - taken[o, i] - taken[j, t]
    differences[np.arange(len(link)), link] -= 1
    detours = csr_array(differences).astype(np.float64)
    return RoutingModel(gradient, detours, np.maximum(slack[distinct], 0.0))


def _detours(
    network: TransportNetwork,
    toll: Array,
    routes: Routes,
    marked: npt.NDArray[np.bool_],
    reach: float,
) -> tuple[IndexArray, IndexArray, IndexArray, Array]:
    """Origin, destination, link off the route, and how much dearer, for all within reach."""
    none = np.zeros(0, dtype=np.intp)
    found = [(none, none, none, np.zeros(0))]
    to_destination = routes.price[network.head].T
    with np.errstate(invalid="ignore"):  # from what cannot be reached
        for o in np.flatnonzero(marked.any(axis=1)):
            to_link = routes.price[o, network.tail] + network.travel_cost + toll
            slack = to_link + to_destination - routes.price[o][:, None]
            t, link = np.nonzero((slack < reach) & marked[o][:, None])
            found.append((np.full(len(t), o), t, link, slack[t, link]))
    origin, destination, link, slack = map(np.concatenate, zip(*found, strict=True))
    return origin, destination, link, slack


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
