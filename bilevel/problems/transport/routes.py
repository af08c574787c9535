"""Shortest routes at given link costs, and the pool of routes that a program works on."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, vstack
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from bilevel.problems.transport.network import TransportNetwork

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
#: Entries of pairs' products that are formed at a time: what a processor's cache holds.
_CACHED = 2**18


class Shortest(NamedTuple):
    """The cost of each pair's shortest route, and the links of one such route a pair, by rows."""

    cost: Array
    routes: csr_array


class RouteFinder:
    """Dijkstra's algorithm on a network's links, from every origin at once."""

    def __init__(self, network: TransportNetwork) -> None:
        size = len(network.nodes)
        order = np.lexsort((network.head, network.tail))
        self._order = order
        self._head = network.head[order]
        self._begin = np.searchsorted(network.tail[order], np.arange(size + 1))
        self._link = np.full((size, size), -1, dtype=np.intp)
        self._link[network.tail, network.head] = np.arange(len(order))
        self._origins, self._row = np.unique(network.origin, return_inverse=True)
        self._origin, self._destination = network.origin, network.destination

    def __call__(self, cost: Array) -> Shortest:
        """Shortest routes of all pairs at these link costs, all of which are >= 0."""
        size = len(self._link)
        graph = csr_array((cost[self._order], self._head, self._begin), shape=(size, size))
        distance, previous = dijkstra(  # type: ignore[call-overload]
            graph, indices=self._origins, return_predecessors=True
        )
        owners: list[Index] = []
        links: list[Index] = []
        at, remaining = self._destination.copy(), np.arange(len(self._destination))
        while len(remaining):
            before = previous[self._row[remaining], at[remaining]]
            owners.append(remaining)
            links.append(self._link[before, at[remaining]])
            at[remaining] = before
            remaining = remaining[before != self._origin[remaining]]
        rows, columns = np.concatenate(owners), np.concatenate(links)
        shape = (len(self._destination), len(cost))
        routes = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        return Shortest(distance[self._row, self._destination], routes)


class RoutePool:
    """Distinct routes, those of a pair side by side; every pair has one once all were added.

    Attributes
    ----------
    routes : sparse array of shape (P, E)
        Which links a route takes.
    pair : array of shape (P,)
        The pair that it serves.
    """

    def __init__(self, network: TransportNetwork) -> None:
        links, pairs = len(network.tail), len(network.origin)
        self.routes = csr_array((0, links))
        self.pair: Index = np.zeros(0, dtype=np.intp)
        # A route is recognised by the sum of its links' random keys.
        keys = np.random.default_rng(0).integers(2**62, size=links + pairs)
        self._link_keys, self._pair_keys = keys[:links], keys[links:]
        self._known = np.zeros(0, dtype=np.int64)
        self._layout: RouteLayout | None = None

    def __len__(self) -> int:
        return len(self.pair)

    @property
    def layout(self) -> RouteLayout:
        """The routes as the linear algebra of a program takes them."""
        if self._layout is None:
            self._layout = RouteLayout(self.routes, self.pair)
        return self._layout

    def add(self, shortest: Shortest, wanted: npt.NDArray[np.bool_]) -> int:
        """Add the wanted pairs' routes that are not here yet; returns how many these were."""
        routes = shortest.routes
        with np.errstate(over="ignore"):
            keys = self._keys(routes) + self._pair_keys
        new = np.flatnonzero(wanted & ~np.isin(keys, self._known))
        if len(new):
            pair = np.concatenate([self.pair, new])
            known = np.concatenate([self._known, keys[new]])
            self._keep(vstack([self.routes, routes[new]], format="csr"), pair, known)
        return len(new)

    def retain(self, kept: npt.NDArray[np.bool_]) -> None:
        """Drop the other routes."""
        self._keep(self.routes[np.flatnonzero(kept)], self.pair[kept], self._known[kept])

    def state_dict(self) -> dict[str, Tensor]:
        """The routes as tensors: of each its pair and the number of its links, then all links."""
        return {
            "pair": torch.from_numpy(self.pair.copy()),
            "length": torch.from_numpy(np.diff(self.routes.indptr).astype(np.int64)),
            "links": torch.from_numpy(self.routes.indices.astype(np.int64)),
        }

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Take the routes that :meth:`state_dict` gave."""
        pair, length, links = (saved[name].numpy() for name in ("pair", "length", "links"))
        begin = np.append(0, np.cumsum(length))
        shape = (len(pair), self.routes.shape[1])
        routes = csr_array((np.ones(len(links)), links, begin), shape=shape)
        with np.errstate(over="ignore"):
            known = self._keys(routes) + self._pair_keys[pair]
        self._keep(routes, pair, known)

    def _keys(self, routes: csr_array) -> npt.NDArray[np.int64]:
        if not routes.shape[0]:
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(self._link_keys[routes.indices], routes.indptr[:-1])

    def _keep(self, routes: csr_array, pair: Index, known: npt.NDArray[np.int64]) -> None:
        order = np.argsort(pair, kind="stable")
        self.routes = csr_array(routes[order])
        self.routes.sort_indices()
        self.pair, self._known = pair[order], known[order]
        self._layout = None


class RouteLayout:
    """The structure of the normal equations over a pool: which entries there are, not their values.

    Attributes
    ----------
    routes, links : sparse arrays of shapes (P, E) and (E, P)
    pairs : array of shape (K,)
        The pairs that have routes.
    first, count : arrays of shape (K,)
        A pair's first route, and the number of its routes.
    local : array of shape (P,)
        A route's place in ``pairs``.
    """

    def __init__(self, routes: csr_array, pair: Index) -> None:
        self.routes, self.links = routes, csr_array(routes.T)
        self.pairs, self.first, self.count = np.unique(pair, return_index=True, return_counts=True)
        self.local = np.repeat(np.arange(len(self.pairs)), self.count)

    def per_pair(self, values: Array) -> Array:
        """Sums over each pair's routes."""
        return np.add.reduceat(values, self.first)

    def normal_matrix(self, share: Array, spread: Array, weight: Array) -> Array:
        r"""The sum over pairs of a covariance and a square of the mean, of shape (E, E).

        .. math:: \sum_p t_p (A_p - \bar A_k)(A_p - \bar A_k)^\top
            + \sum_k \omega_k \bar A_k \bar A_k^\top

        with :math:`\bar A_k` the mean of pair k's routes under shares that sum to one.

        Parameters
        ----------
        share : array of shape (P,)
        spread : array of shape (P,)
            t.
        weight : array of shape (K,)
            :math:`\omega`.
        """
        share, root = np.append(share, 0.0), np.append(np.sqrt(spread), 0.0)
        root_weight = np.sqrt(weight)[:, None]
        values, begin = self._values, 0
        for block in self._blocks:
            mean = share[block.routes][:, None, :] @ block.taken
            rows = np.concatenate([block.taken, mean], axis=1)
            rows[:, :-1] -= mean
            rows *= np.append(root[block.routes], root_weight[block.pairs], axis=1)[:, :, None]
            product = rows.transpose(0, 2, 1) @ rows
            part = values[begin : begin + len(rows) * len(block.triangle)]
            np.take(
                product.reshape(len(rows), -1), block.triangle, axis=1,
                out=part.reshape(len(rows), -1), mode="clip",
            )  # fmt: skip
            begin += len(part)
        size = self.routes.shape[1]
        cells = np.bincount(self._cells, values, minlength=size * size)
        half = cells.astype(np.float64).reshape(size, size)
        return half + np.tril(half, -1).T

    @cached_property
    def _values(self) -> Array:
        """Room for those entries: to ask for it anew costs as much as to fill it."""
        return np.empty(len(self._cells))

    @cached_property
    def _cells(self) -> Index:
        """Where the entries of the pairs' triangles belong in the matrix, block after block."""
        links, cells = self.routes.shape[1], []
        for each in self._blocks:
            row, column = np.divmod(each.triangle, each.links.shape[1])
            cells.append((each.links[:, row] * links + each.links[:, column]).ravel())
        return np.concatenate(cells)

    @cached_property
    def _blocks(self) -> list[_Block]:
        links = self.routes.shape[1]
        owner = np.repeat(np.arange(len(self.local)), np.diff(self.routes.indptr))
        pair = self.local[owner]
        keys, place = np.unique(pair * links + self.routes.indices, return_inverse=True)
        of_pair, link = np.divmod(keys, links)
        width = np.bincount(of_pair, minlength=len(self.pairs))
        begin = np.cumsum(width) - width
        # Shapes are rounded up, for few blocks: a block is worth some thousand entries.
        rows, columns = 2 ** np.ceil(np.log2(self.count)).astype(np.intp), 4 * -(-width // 4)
        size = rows * columns
        start = np.cumsum(size) - size
        taken = np.zeros(int(size.sum()))
        row, column = owner - self.first[pair], place - begin[pair]
        taken[start[pair] + row * columns[pair] + column] = 1.0

        def block(pairs: Index, high: int, wide: int) -> _Block:
            route, at = np.arange(high), np.arange(wide)
            real = at < width[pairs][:, None]
            first, count = self.first[pairs][:, None], self.count[pairs][:, None]
            places = start[pairs][:, None] + np.arange(high * wide)
            return _Block(
                pairs=pairs,
                routes=np.where(route < count, first + route, len(self.local)),
                links=link[np.where(real, begin[pairs][:, None] + at, 0)],
                taken=taken[places].reshape(-1, high, wide),
                triangle=np.flatnonzero(np.tri(wide, dtype=bool)),
            )

        blocks = []
        shapes, shape = np.unique(rows * (links + 4) + columns, return_inverse=True)
        for number, (high, wide) in enumerate(zip(*np.divmod(shapes, links + 4), strict=True)):
            alike = np.flatnonzero(shape == number)
            parts = np.array_split(alike, -(-len(alike) * wide**2 // _CACHED))
            blocks += [block(pairs, high, wide) for pairs in parts]
        return blocks


class _Block(NamedTuple):
    """Pairs with at most R routes over at most n links: what is missing takes, and is taken, never.

    ``pairs`` (B,), their ``routes`` (B, R) and ``links`` (B, n), increasing, which take which
    (B, R, n), and the places of the lower triangle in a flat (n, n) matrix.
    """

    pairs: Index
    routes: Index
    links: Index
    taken: Array
    triangle: Index
