"""Networks from graphs and back: networkx, and through it GraphML."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bilevel.errors import ProblemError
from bilevel.problems.transport.tables import PathLike

if TYPE_CHECKING:
    import networkx

_COORDINATES = (("x", "y"), ("lon", "lat"))


def link_table(graph: networkx.Graph, travel_cost: str, construction_cost: str) -> pd.DataFrame:
    """Make the table of links of a graph; an undirected edge is two links."""
    if not hasattr(graph, "is_multigraph"):
        raise ProblemError(f"graph: found {type(graph).__name__}, expected a networkx.DiGraph")
    if graph.is_multigraph():
        raise ProblemError(
            f"the graph is a {type(graph).__name__}; parallel links are not supported: merge them, "
            "and give a Graph or DiGraph"
        )
    attributes = {"d": travel_cost, "c": construction_cost}
    rows, ends = [], []
    for i, j, edge in graph.edges(data=True):
        for attribute in attributes.values():
            if attribute not in edge:
                raise ProblemError(
                    f"the edge from {i!r} to {j!r} has no attribute {attribute!r} among "
                    f"{', '.join(map(repr, edge)) or 'none'}; each edge needs {travel_cost!r} and "
                    f"{construction_cost!r}, or the names given as travel_cost, construction_cost"
                )
        costs = {column: edge[attribute] for column, attribute in attributes.items()}
        for tail, head in [(i, j)] if graph.is_directed() else [(i, j), (j, i)]:
            rows.append({"i": tail, "j": head, **costs})
            ends.append(f"{tail!r} → {head!r}")
            if i == j:
                break
    index = pd.Index(ends, name="edge", dtype=object)
    return pd.DataFrame(rows, columns=["i", "j", "d", "c"], index=index)


def position_table(graph: networkx.Graph) -> pd.DataFrame | None:
    """Collect the positions of the nodes with edges, or nothing where no node has any."""
    positions = {
        node: position
        for node, attributes in graph.nodes(data=True)
        if graph.degree(node) and (position := _position(node, attributes)) is not None
    }
    if not positions:
        return None
    index = pd.Index(list(positions), name="node", tupleize_cols=False)
    return pd.DataFrame(list(positions.values()), columns=["x", "y"], index=index)


def read_graphml(path: PathLike) -> networkx.Graph:
    """Read a graph, whose nodes are strings."""
    import networkx

    path = Path(path)
    try:
        return networkx.read_graphml(path)
    except FileNotFoundError as error:
        raise ProblemError(f"{path} does not exist; expected a GraphML file") from error
    except OSError as error:
        raise ProblemError(f"{path} cannot be read ({error})") from error
    except (SyntaxError, ValueError, KeyError, networkx.NetworkXException) as error:
        raise ProblemError(
            f"{path} is not a GraphML file ({error}); networkx.write_graphml writes them"
        ) from error


def _position(node: Hashable, attributes: Mapping[str, Any]) -> tuple[Any, Any] | None:
    for x, y in _COORDINATES:
        if x in attributes and y in attributes:
            return attributes[x], attributes[y]
    if "pos" not in attributes:
        return None
    try:
        x, y = attributes["pos"]
    except (TypeError, ValueError):
        raise ProblemError(
            f"node {node!r} has pos={attributes['pos']!r}; expected two coordinates"
        ) from None
    return x, y
