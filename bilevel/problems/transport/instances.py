"""Networks that the library carries: the small ones of the BLOCC paper."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.tables import Array


def three_node() -> TransportNetwork:
    r"""The three-node network of the BLOCC paper, of known optimum.

    All 6 directed links may be built and all 6 pairs have demand 1. The best plan builds 1 → 2 and
    2 → 1 with capacity :math:`\sigma(2)` each, :math:`\sigma` the logistic function, for a profit
    of :math:`2\sigma(2) = 1.761594`.

    Returns
    -------
    TransportNetwork
        Nodes 1, 2, 3.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, section 4.3.
    """
    ends = [(1, 2), (1, 3), (2, 3)]
    both = [(i, j) for a, b in ends for i, j in ((a, b), (b, a))]
    table = pd.DataFrame(both, columns=["i", "j"])
    links = table.assign(d=np.repeat([1.0, 10.0, 2.0], 2), c=np.repeat([1.0, 10.0, 3.0], 2))
    pairs = table.rename(columns={"i": "o", "j": "dest"}).assign(
        w=1.0, u=3.0, m=np.repeat([2.0, 6.0, 1.0], 2)
    )
    positions = pd.DataFrame(
        {"x": [0.0, 2.0, 1.0], "y": [0.0, 0.0, 1.5]}, index=pd.Index([1, 2, 3], name="node")
    )
    return TransportNetwork(links, pairs, positions, name="three-node")


# Ends, travel cost, construction cost; each link may be built either way.
_NINE_NODE_LINKS = (
    (1, 2, 0.75, 1.7),
    (1, 3, 0.7, 2.7),
    (1, 9, 0.9, 2.9),
    (2, 3, 0.6, 2.1),
    (2, 4, 1.1, 3.0),
    (3, 4, 1.1, 2.6),
    (3, 5, 0.5, 1.7),
    (3, 9, 0.7, 2.5),
    (4, 5, 0.8, 2.8),
    (4, 6, 0.7, 2.4),
    (4, 8, 0.8, 3.2),
    (5, 6, 0.5, 1.9),
    (5, 7, 0.7, 3.0),
    (6, 7, 0.5, 2.7),
    (6, 8, 0.4, 2.8),
)
# Rows are origins, columns destinations.
_NINE_NODE_DEMAND = """
0   0.9 2.6 1.9 1.3 1.2 1.3 0.8 1.1
1.1 0   1.4 2.6 0.7 1.8 0.3 0.6 1.2
3   1.9 0   3   2.4 0.8 1.5 1.2 0.5
2.1 0.9 1.1 0   2.2 1.6 2.5 2.1 2.3
1.4 1.4 0.8 0.9 0   2   1.6 2.2 2.1
2.6 0.1 2.2 2.4 1.3 0   1.6 1.4 1.2
0.8 0.6 0.9 2.3 0.6 1.3 0   1.1 1.1
0.9 0.2 1.4 2   1.8 1.6 1.1 0   0.4
0.8 0.7 1.1 2.2 2.7 1.7 0.8 1.2 0
"""
_NINE_NODE_ALTERNATIVE = """
0   1.6 0.8 2   1.6 2.5 3   2.5 0.8
2   0   0.9 1.2 1.5 2.5 2.7 2.4 1.8
1.5 1.4 0   1.3 0.9 2   1.6 2.3 0.9
1.9 2   1.9 0   1.8 2   1.9 1.2 2
3   1.5 2   2   0   1.5 1.1 1.8 1.7
2.1 2.7 2.2 1   1.5 0   0.9 0.9 2.9
2.8 2.3 1.5 1.8 0.9 0.8 0   1.3 2.1
2.8 2.2 2   1.1 1.5 0.8 1.9 0   0.3
1   1.5 1.1 2.7 1.9 1.8 2.4 3   0
"""
_NINE_NODE_FARE = """
0   2.5 2.5 5   5   7.5 7.5 7.5 2.5
2.5 0   2.5 2.5 5   5   7.5 5   5
2.5 2.5 0   2.5 2.5 5   5   7.5 2.5
5   2.5 2.5 0   2.5 2.5 5   2.5 7.5
5   5   2.5 2.5 0   2.5 2.5 5   2.5
7.5 5   5   2.5 2.5 0   2.5 2.5 7.5
7.5 7.5 5   5   2.5 2.5 0   5   7.5
7.5 5   5   2.5 5   2.5 5   0   7.5
2.5 5   2.5 5   5   7.5 7.5 7.5 0
"""
# The paper draws no coordinates: this layout is planar, and its lengths resemble the travel costs.
_NINE_NODE_POSITIONS = {
    1: (0.0, 1.0),
    2: (0.8, 0.0),
    3: (1.2, 1.0),
    4: (2.4, 0.0),
    5: (2.2, 1.2),
    6: (3.0, 0.8),
    7: (3.2, 1.7),
    8: (3.4, 0.0),
    9: (0.7, 1.9),
}


def nine_node() -> TransportNetwork:
    """The nine-node network of the BLOCC paper: 30 directed links and 72 pairs.

    Returns
    -------
    TransportNetwork
        Nodes 1, …, 9. The positions are a layout for figures; the paper gives none.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, section 4.3 and its appendix.
    """
    links = pd.DataFrame(
        [(i, j, d, c) for a, b, d, c in _NINE_NODE_LINKS for i, j in ((a, b), (b, a))],
        columns=["i", "j", "d", "c"],
    )
    demand = _matrix(_NINE_NODE_DEMAND)
    o, dest = np.nonzero(~np.eye(len(demand), dtype=bool))
    pairs = pd.DataFrame(
        {
            "o": o + 1,
            "dest": dest + 1,
            "w": demand[o, dest],
            "u": _matrix(_NINE_NODE_ALTERNATIVE)[o, dest],
            "m": _matrix(_NINE_NODE_FARE)[o, dest],
        }
    )
    positions = pd.DataFrame.from_dict(_NINE_NODE_POSITIONS, orient="index", columns=["x", "y"])
    return TransportNetwork(links, pairs, positions.rename_axis("node"), name="nine-node")


def _matrix(text: str) -> Array:
    return np.array([line.split() for line in text.split("\n") if line], dtype=np.float64)
