"""The routes that travellers take at given tolls, from every node to every other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bilevel.problems.transport.network import IndexArray, TransportNetwork
from bilevel.problems.transport.tables import Array

TIE = 3e-7  # Routes whose prices differ by less than this, for each dearest link, tie.


class Routes(NamedTuple):
    """Cheapest routes: a tree for each origin; all arrays are of shape (nodes, nodes).

    Attributes
    ----------
    price
        Travel cost and tolls of the route, infinite where there is none.
    cost
        Its construction cost per unit of capacity.
    last
        The link by which it arrives; -1 where there is none.
    """

    price: Array
    cost: Array
    last: IndexArray

    def walk(self, network: TransportNetwork) -> tuple[npt.NDArray[np.int8], IndexArray]:
        """Which links the routes take, (nodes, nodes, E), and by which they leave, as ``last``."""
        size = len(self.price)
        taken = np.zeros((size, size, len(network.tail)), dtype=np.int8)
        first = self.last.copy()
        origin, destination = np.nonzero(self.last >= 0)
        at = destination.copy()
        while len(at):
            link = self.last[origin, at]
            taken[origin, destination, link] = 1
            first[origin, destination] = link
            at = network.tail[link]
            going = at != origin
            origin, destination, at = origin[going], destination[going], at[going]
        return taken, first

    def without(self, network: TransportNetwork, toll: Array, link: int) -> Routes:
        """The routes at these tolls, of which these are those, with one link left out."""
        users = np.flatnonzero(self.last[:, network.head[link]] == link)
        if not len(users):
            return self
        closed = toll.copy()
        closed[link] = np.inf
        changed = Routes(self.price.copy(), self.cost.copy(), self.last.copy())
        for whole, part in zip(changed, cheapest_routes(network, closed, users), strict=True):
            whole[users] = part
        return changed

    def along(self, network: TransportNetwork, values: Array) -> Array:
        """Sums over the links of each route of values (E,)."""
        there = self.last >= 0
        nodes = np.broadcast_to(np.arange(len(there)), there.shape)
        before = np.where(there, network.tail[self.last], nodes)
        return _along(before, np.where(there, values[self.last], 0.0))


def cheapest_routes(
    network: TransportNetwork, toll: Array, origins: IndexArray | None = None
) -> Routes:
    """Dijkstra's algorithm on prices with :func:`surcharge`, which decides ties by construction.

    From some origins only: their rows.
    """
    size, extra = len(network.nodes), surcharge(network)
    origins = np.arange(size) if origins is None else origins
    link = np.flatnonzero(np.isfinite(toll))
    link = link[np.lexsort((network.head[link], network.tail[link]))]
    tail, head = network.tail[link], network.head[link]
    merged = (network.travel_cost + toll + extra * network.construction_cost)[link]
    begin = np.searchsorted(tail, np.arange(size + 1))
    graph = csr_array((merged, head, begin), shape=(size, size))
    distance, previous = dijkstra(  # type: ignore[call-overload]
        graph, indices=origins, return_predecessors=True
    )
    by_ends = np.full((size, size), -1, dtype=np.intp)
    by_ends[tail, head] = link
    reached = previous >= 0
    nodes = np.broadcast_to(np.arange(size), previous.shape)
    before = np.where(reached, previous, nodes)
    last = by_ends[before, nodes]
    own = np.where(reached, network.construction_cost[last], 0.0)
    cost = _along(before, own)
    return Routes(distance - extra * cost, cost, last)


def surcharge(network: TransportNetwork) -> float:
    """What a unit of construction cost adds to prices, for ties: ``TIE`` for the dearest link."""
    return TIE / max(float(network.construction_cost.max()), np.finfo(float).tiny)


def _along(before: IndexArray, own: Array) -> Array:
    """Sums of the nodes' own values along each row's tree up to its root, by doubling the steps."""
    total = own
    while True:
        further = np.take_along_axis(before, before, axis=1)
        if np.array_equal(further, before):
            return total
        total = total + np.take_along_axis(total, before, axis=1)
        before = further
