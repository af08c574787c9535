"""The data of a transport planning problem: candidate links and travellers."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bilevel.errors import ProblemError
from bilevel.problems.transport.graphs import link_table, position_table, read_graphml
from bilevel.problems.transport.tables import (
    PAIR_COLUMNS,
    Array,
    PathLike,
    read_csv,
    read_tables,
    validated_links,
    validated_pairs,
    validated_positions,
)

if TYPE_CHECKING:
    import networkx

IndexArray: TypeAlias = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TransportNetwork:
    r"""Candidate links, which an operator may build, and the travellers who may use them.

    Each directed link e = (i, j) has a travel cost :math:`d_e` and a construction cost
    :math:`c_e` per unit of capacity; each origin–destination pair k has a demand :math:`w_k`, a
    fare :math:`m_k` and an alternative mode of travel of generalised cost :math:`u_k`. Travel and
    alternative costs are in the units of the logit model, in which a cost difference of 1
    multiplies the odds of a choice by e. The fare is the operator's revenue a passenger; where
    passengers pay it on top of what the alternative costs them, :math:`u_k` is that cost less the
    fare.

    Parameters
    ----------
    links : pandas.DataFrame
        One row a directed link: its nodes ``i`` and ``j``, travel cost ``d`` and construction cost
        ``c``. Costs are finite and not negative; zero is allowed.
    pairs : pandas.DataFrame
        One row an origin–destination pair: its nodes ``o`` and ``dest``, demand ``w``, alternative
        cost ``u`` and fare ``m``, all finite and not negative. Pairs of zero demand are left out.
    positions : pandas.DataFrame, optional
        Columns ``x`` and ``y`` (longitude and latitude in degrees, or any coordinates of the
        plane), indexed by node: one row for each.
    name : str
        The name in printed output and figures.

    Raises
    ------
    ProblemError
        A table lacks a column or has no row; a cell is missing, not a number, not finite or
        negative; a link or pair occurs twice or leads from a node to itself; the demand or the
        positions name a node that no link touches; or no path joins a pair. The message names the
        table, its row and its column.

    Notes
    -----
    The tables are copied, and only the named columns kept. Nodes are any hashable labels, in
    sorted order where they can be compared, else in that of their first appearance in the links.
    The arrays below are read-only; E is the number of links and K the number of pairs.
    """

    links: pd.DataFrame
    pairs: pd.DataFrame
    positions: pd.DataFrame | None = None
    name: str = "network"

    def __post_init__(self) -> None:
        object.__setattr__(self, "links", validated_links(self.links))
        object.__setattr__(self, "pairs", validated_pairs(self.pairs, self.nodes))
        if self.positions is not None:
            positions = validated_positions(self.positions, self.nodes)
            object.__setattr__(self, "positions", positions)
        self._require_paths()

    def __repr__(self) -> str:
        return (
            f"TransportNetwork({self.name!r}, {len(self.nodes)} nodes, {len(self.links)} links, "
            f"{len(self.pairs)} pairs)"
        )

    @classmethod
    def from_csv(
        cls,
        links: PathLike,
        demand: PathLike,
        positions: PathLike | None = None,
        *,
        name: str = "network",
    ) -> TransportNetwork:
        """Read a network from CSV files, each with a header and columns separated by commas.

        Parameters
        ----------
        links
            Columns i, j (nodes), d (travel cost), c (construction cost per unit of capacity).
        demand
            Columns o, dest (nodes), w (demand), u (cost of the alternative), m (fare).
        positions
            Columns node, x, y.
        name
            The network's name.

        Returns
        -------
        TransportNetwork
            Its nodes are integers if the files name all of them by integers, else strings.

        Raises
        ------
        ProblemError
            A file does not exist, is empty or is not CSV; or the network is invalid, where the
            message names the line of the file.
        """
        tables = read_tables(links, demand, positions)
        return cls(*tables, name=name)  # type: ignore[arg-type, misc]

    @classmethod
    def from_graph(
        cls,
        graph: networkx.Graph,
        pairs: pd.DataFrame,
        *,
        travel_cost: str = "travel_cost",
        construction_cost: str = "construction_cost",
    ) -> TransportNetwork:
        """Take the links from a graph.

        Parameters
        ----------
        graph
            A ``networkx.DiGraph``, or a ``Graph``, whose edges may be built either way. Its nodes'
            attributes x and y, lon and lat, or pos become the positions. Nodes without an edge are
            left out.
        pairs
            The table of pairs, which names the graph's nodes.
        travel_cost, construction_cost
            Names of the edges' attributes.

        Returns
        -------
        TransportNetwork
            Named as the graph.

        Raises
        ------
        ProblemError
            The graph has parallel edges, an edge lacks a cost, or the network is invalid.
        """
        return cls(
            link_table(graph, travel_cost, construction_cost),
            pairs,
            position_table(graph),
            name=graph.name or "network",
        )

    @classmethod
    def from_graphml(
        cls,
        path: PathLike,
        pairs: pd.DataFrame | PathLike,
        *,
        travel_cost: str = "travel_cost",
        construction_cost: str = "construction_cost",
    ) -> TransportNetwork:
        """Read the links from a GraphML file.

        Parameters
        ----------
        path
            The file.
        pairs
            The table of pairs, or its CSV file. GraphML names nodes by strings, and so must the
            table; a file's nodes are read as strings.
        travel_cost, construction_cost
            Names of the edges' attributes.

        Returns
        -------
        TransportNetwork
            See :meth:`from_graph`.

        Raises
        ------
        ProblemError
            A file cannot be read, or the network is invalid.
        """
        table = pairs if isinstance(pairs, pd.DataFrame) else read_csv(pairs, PAIR_COLUMNS)
        return cls.from_graph(
            read_graphml(path), table, travel_cost=travel_cost, construction_cost=construction_cost
        )

    def to_graph(self) -> networkx.DiGraph:
        """Make a graph that :meth:`from_graph` reads; ``networkx.write_graphml`` writes it.

        Returns
        -------
        networkx.DiGraph
            Edges with the attributes travel_cost and construction_cost, nodes with x and y where
            there are positions.
        """
        import networkx

        graph = networkx.DiGraph(name=self.name)
        graph.add_nodes_from(self.nodes)
        if self.positions is not None:
            for node, x, y in zip(self.nodes, *self.positions.T.to_numpy().tolist(), strict=True):
                graph.add_node(node, x=x, y=y)
        for i, j, d, c in zip(*(self.links[column].tolist() for column in "ijdc"), strict=True):
            graph.add_edge(i, j, travel_cost=d, construction_cost=c)
        return graph

    @cached_property
    def nodes(self) -> tuple[Any, ...]:
        """The ends of the links."""
        ends = zip(self.links["i"].tolist(), self.links["j"].tolist(), strict=True)
        appearing: dict[Hashable, None] = dict.fromkeys(node for pair in ends for node in pair)
        try:
            return tuple(sorted(appearing))
        except TypeError:
            return tuple(appearing)

    @cached_property
    def tail(self) -> IndexArray:
        """Shape (E,): the index in :attr:`nodes` of the node that the link leaves."""
        return self._indices(self.links["i"])

    @cached_property
    def head(self) -> IndexArray:
        """Shape (E,): the index of the node that the link enters."""
        return self._indices(self.links["j"])

    @cached_property
    def travel_cost(self) -> Array:
        """Shape (E,): d."""
        return _frozen(self.links["d"])

    @cached_property
    def construction_cost(self) -> Array:
        """Shape (E,): c, per unit of capacity."""
        return _frozen(self.links["c"])

    @cached_property
    def origin(self) -> IndexArray:
        """Shape (K,): the index of the pair's origin."""
        return self._indices(self.pairs["o"])

    @cached_property
    def destination(self) -> IndexArray:
        """Shape (K,): the index of the pair's destination."""
        return self._indices(self.pairs["dest"])

    @cached_property
    def demand(self) -> Array:
        """Shape (K,): w."""
        return _frozen(self.pairs["w"])

    @cached_property
    def alternative_cost(self) -> Array:
        """Shape (K,): u."""
        return _frozen(self.pairs["u"])

    @cached_property
    def fare(self) -> Array:
        """Shape (K,): m."""
        return _frozen(self.pairs["m"])

    def per_link(self, name: str, values: npt.ArrayLike, *, infinite: bool = False) -> Array:
        """Numbers >= 0, one a link, as a new array of shape (E,).

        Raises
        ------
        ProblemError
            Values of another kind or number, one that is negative or NaN, or infinite where it may
            not be.
        """
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ProblemError(
                f"{name}={values!r}, expected one number for each of {len(self.links)} links"
            ) from error
        if array.shape != (len(self.links),):
            raise ProblemError(
                f"{name} has shape {array.shape}, expected one number for each of "
                f"{len(self.links)} links"
            )
        wrong = np.flatnonzero(~((array >= 0) & (infinite | np.isfinite(array))))
        if len(wrong):
            i, j = (self.links[end].tolist()[wrong[0]] for end in "ij")
            raise ProblemError(
                f"{name} of link {i!r} → {j!r} is {array[wrong[0]]}, expected a number >= 0"
                + (", or numpy.inf for a link that is not built" if infinite else "")
            )
        return array

    def _indices(self, labels: pd.Series[Any]) -> IndexArray:
        index = {node: position for position, node in enumerate(self.nodes)}
        array = np.array([index[label] for label in labels.tolist()], dtype=np.intp)
        array.flags.writeable = False
        return array

    def _require_paths(self) -> None:
        size = len(self.nodes)
        graph = csr_array((np.ones(len(self.tail)), (self.tail, self.head)), shape=(size, size))
        origins, row = np.unique(self.origin, return_inverse=True)
        hops = dijkstra(graph, indices=origins, unweighted=True)
        severed = np.flatnonzero(np.isinf(hops[row, self.destination]))
        if severed.size:
            o, dest = (self.pairs[end].tolist()[severed[0]] for end in ("o", "dest"))
            raise ProblemError(
                f"demand table: no path of links leads from {o!r} to {dest!r} ({severed.size} of "
                f"{len(self.pairs)} pairs have none); links are directed: add the missing ones, or "
                "leave out these pairs"
            )


def _frozen(column: pd.Series[Any]) -> Array:
    array = column.to_numpy(dtype=np.float64, copy=True)
    array.flags.writeable = False
    return array


def require_network(value: object) -> None:
    """Refuse what is no network, such as a graph that was not made into one."""
    if not isinstance(value, TransportNetwork):
        raise ProblemError(
            f"network: found {type(value).__name__}, expected a TransportNetwork, as "
            "TransportNetwork(links, pairs) makes of tables and TransportNetwork.from_graph(graph, "
            "pairs) of a graph"
        )
