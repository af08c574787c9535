"""Random planar networks of any size, for scaling studies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from scipy.spatial import Delaunay
from scipy.spatial.distance import cdist

from bilevel.errors import OptionError
from bilevel.options import check_count
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.tables import Array

# Seville's means: of a link's travel cost, of c / d, and of the pairs' demand.
_LINK_COST = 0.8
_CONSTRUCTION_PER_COST = 1.1
_DEMAND = 2.65
_DROPPED = 0.2
#: Nodes; beyond, the demand between all pairs would fill the memory.
_LARGEST = 3000


def random_network(nodes: int, *, seed: int) -> TransportNetwork:
    r"""Draw a planar network in the likeness of Seville's, with all pairs of nodes.

    - The nodes are uniform in a square of area n, so that links keep their length as n grows. The
      candidate links are the edges, both ways, of the nodes' Delaunay triangulation without the
      longest fifth; an edge of the minimum spanning tree always stays, and with it a path between
      any two nodes.
    - The travel cost d is 0.8 times a link's length, the construction cost c is 1.1 d.
    - Demand follows a gravity model, :math:`w_{ot} \propto p_o p_t / (1 + h_{ot})` with
      populations p uniform on [0.5, 1.5] and straight-line distances h; its mean is 2.65.
    - The alternative mode costs 0.8 h, or a fifth more for a random 40 % of the ordered pairs.
    - The fare is the shortest path's travel cost plus :math:`\pm 1 \pm 2`, each sign random, and at
      least 0.25. A pair of neighbours whose fare exceeds d by 3 pays for its own link while
      d < 30, so that in all but the smallest networks some plan earns a profit.

    Parameters
    ----------
    nodes
        The number of nodes n, from 3 to 3000.
    seed
        Seed of all random numbers, from 0 to 2**32 - 1.

    Returns
    -------
    TransportNetwork
        Nodes 1, …, n, about 4.6 n directed links, and n (n - 1) pairs.

    Raises
    ------
    OptionError
        A parameter is out of range.
    """
    check_count("nodes", nodes, least=3)
    if nodes > _LARGEST:
        raise OptionError(f"nodes={nodes}; there would be {nodes * (nodes - 1)} pairs of them")
    check_count("seed", seed, least=0)
    if seed >= 2**32:
        raise OptionError(f"seed={seed}; expected an integer from 0 to 2**32 - 1")
    # RandomState, since its stream is frozen: default_rng's may change between NumPy releases.
    random = np.random.RandomState(seed)
    points = np.sqrt(nodes) * random.random_sample((nodes, 2))
    distance = cdist(points, points)
    edges = _thinned_edges(points, distance)
    tail, head = np.vstack([edges, edges[:, ::-1]]).T
    travel_cost = _LINK_COST * distance[tail, head]
    links = pd.DataFrame(
        {
            "i": tail + 1,
            "j": head + 1,
            "d": travel_cost,
            "c": _CONSTRUCTION_PER_COST * travel_cost,
        }
    ).sort_values(["i", "j"])

    shortest = dijkstra(csr_array((travel_cost, (tail, head)), shape=distance.shape))
    o, dest = np.nonzero(~np.eye(nodes, dtype=bool))
    population = random.uniform(0.5, 1.5, nodes)
    attraction = population[o] * population[dest] / (1 + distance[o, dest])
    detour = np.where(random.random_sample(len(o)) < 0.4, 1.2, 1.0)
    step_one, step_two = random.choice([-1.0, 1.0], (2, len(o)))
    pairs = pd.DataFrame(
        {
            "o": o + 1,
            "dest": dest + 1,
            "w": _DEMAND * attraction / attraction.mean(),
            "u": _LINK_COST * distance[o, dest] * detour,
            "m": np.maximum(0.25, shortest[o, dest] + step_one + 2 * step_two),
        }
    )
    index = pd.Index(range(1, nodes + 1), name="node")
    positions = pd.DataFrame(points, columns=["x", "y"], index=index)
    return TransportNetwork(links, pairs, positions, name=f"random-{nodes}-{seed}")


def _thinned_edges(points: Array, distance: Array) -> npt.NDArray[np.intp]:
    triangles = Delaunay(points).simplices
    corners = [np.sort(triangles[:, ends], axis=1) for ends in map(list, combinations(range(3), 2))]
    edges = np.unique(np.vstack(corners), axis=0).astype(np.intp)
    length = distance[edges[:, 0], edges[:, 1]]
    graph = coo_array((length, tuple(edges.T)), shape=distance.shape)
    tree = minimum_spanning_tree(graph.tocsr()).toarray() > 0
    longest = np.argsort(length)[len(length) - int(_DROPPED * len(length)) :]
    kept = tree[edges[:, 0], edges[:, 1]]
    kept[np.setdiff1d(np.arange(len(length)), longest)] = True
    return edges[kept]
