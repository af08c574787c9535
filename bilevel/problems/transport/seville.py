"""The metro of Seville: 24 stations, 88 candidate links and 552 pairs.

The instance of the transport experiment of BLOCC (Jiang et al. 2024, arXiv:2406.10148, section 4.3
and its appendix). The stations' coordinates are read from upstream's workbook. The candidate
neighbours and the demand stand only in upstream's script (github.com/Liuyuan999/
Penalty_Based_Lagrangian_Bilevel, Apache-2.0) and are therefore tabulated here.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bilevel.datasets.remote import fetch
from bilevel.errors import ProblemError
from bilevel.extras import require
from bilevel.problems.transport.network import TransportNetwork, require_network
from bilevel.problems.transport.tables import Array

_STATIONS, _LINKS = 24, 88
_EARTH_RADIUS = 6371.0  # km
_SPEED = 30.0  # km/h
_COST_PER_MINUTE = 0.25
_LONGEST_LINK = 7.0  # minutes
_NEAREST = 3
_CONSTRUCTION_PER_KM = 1e6 / (365.25 * 25)  # of a million a kilometre, per day over 25 years
_PASSENGERS = 200.0  # in a unit of demand and capacity
_SEED = 1

# Each station's neighbours of higher number, from 1: the pairs of stations that may be joined.
_NEIGHBOURS: dict[int, tuple[int, ...]] = {
    1: (2, 3, 4, 5, 8, 9, 10, 17, 18, 23, 24),
    2: (3, 4, 5, 8, 9, 18, 23, 24),
    3: (8, 9, 14, 16, 18, 19, 21, 24),
    4: (6, 11, 15, 16, 20, 22, 23),
    5: (9, 10, 12, 13, 14, 17, 21, 24),
    6: (7, 14, 16, 19, 20, 22),
    7: (11, 12, 13, 14, 17, 19, 20, 21, 22),
    8: (9, 10, 24),
    9: (10, 12, 16, 17, 19, 20, 21),
    10: (12, 17, 19, 20, 21, 24),
    11: (14, 15, 16, 19, 20, 22, 23),
    12: (13, 14, 17, 19, 20),
    13: (17, 19, 24),
    14: (15, 16, 17, 18, 19, 20, 21, 22),
    15: (16, 18, 20, 22, 23),
    16: (18, 21, 22, 23),
    17: (19, 21, 24),
    18: (19, 21, 23),
    19: (20, 21),
    20: (21, 22),
    21: (23,),
    22: (23,),
    23: (24,),
}

# A station's demand depends on the destination through its zone alone, but for the exceptions.
_OUTER, _MIDDLE, _CENTRE = (
    (1, 2, 3, 4, 5, 7, 8, 9, 12, 14, 18),
    (6, 10, 11, 13, 15, 16, 17),
    (19, 20, 21, 22, 23, 24),
)
_DEMAND_TO_ZONES: tuple[tuple[int, int, int], ...] = (
    (272, 553, 937),  # from station 1
    (272, 553, 937),
    (327, 664, 1125),
    (185, 376, 637),
    (272, 553, 937),
    (225, 188, 284),
    (283, 575, 975),
    (272, 553, 937),
    (272, 553, 937),
    (511, 428, 645),
    (225, 188, 284),
    (272, 553, 937),
    (306, 306, 387),
    (294, 597, 1012),
    (409, 342, 516),
    (511, 428, 645),
    (429, 360, 542),
    (272, 553, 937),
    (675, 730, 660),
    (879, 952, 860),
    (715, 775, 700),
    (511, 553, 500),
    (675, 730, 660),
    (675, 730, 660),
)
_DEMAND_EXCEPTIONS: dict[tuple[int, int], int] = {
    (13, 6): 257,
    (13, 10): 257,
    (13, 12): 257,
    (13, 14): 257,
    (13, 18): 257,
    (14, 18): 297,
    (17, 10): 306,
}


def seville() -> TransportNetwork:
    r"""Build the published instance of Seville's metro.

    With the great-circle distance :math:`h_{ij}` of stations i and j, in km:

    - a link joins i and j, both ways, if they are candidate neighbours, j is among the 3 nearest
      of i's or i among those of j's, and the ride at 30 km/h takes at most 7 minutes;
    - :math:`d` is 0.25 a minute of the ride, :math:`c` one million a km spread over the days of 25
      years, per unit of 200 passengers, and w the demand in these units;
    - the alternative mode drives the distance h, or 1.2 h for a random 40 % of the pairs of
      stations, at the same speed and cost a minute;
    - the fare is the shortest path's travel cost plus :math:`\pm 1 \pm 2`, each sign random, and
      at least 0.25.

    The random numbers are those of the published script, Mersenne twister with seed 1.

    Returns
    -------
    TransportNetwork
        Nodes 1, …, 24; positions in degrees of longitude and latitude.

    Raises
    ------
    DatasetError
        The workbook cannot be found or downloaded; see :func:`bilevel.datasets.fetch`.
    MissingExtraError
        The package openpyxl, which reads it, is not installed.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, section 4.3, and the published script.
    """
    longitude, latitude = _coordinates()
    great_circle = _great_circle(longitude, latitude)
    minutes = 60 / _SPEED * _candidate_distance(great_circle)
    tail, head = np.nonzero(_linked(minutes))
    travel_cost = _COST_PER_MINUTE * minutes[tail, head]
    distance = minutes[tail, head] * _SPEED / 60
    links = pd.DataFrame(
        {
            "i": tail + 1,
            "j": head + 1,
            "d": travel_cost,
            "c": _CONSTRUCTION_PER_KM * distance / _PASSENGERS,
        }
    )
    graph = csr_array((travel_cost, (tail, head)), shape=minutes.shape)
    shortest = dijkstra(graph)
    alternative = _COST_PER_MINUTE * 60 / _SPEED * great_circle * _detour()
    o, dest = np.nonzero(~np.eye(_STATIONS, dtype=bool))
    pairs = pd.DataFrame(
        {
            "o": o + 1,
            "dest": dest + 1,
            "w": _demand()[o, dest] / _PASSENGERS,
            "u": alternative[o, dest],
            "m": np.maximum(0.25, shortest + _fare_noise())[o, dest],
        }
    )
    stations = pd.Index(range(1, _STATIONS + 1), name="node")
    positions = pd.DataFrame({"x": longitude, "y": latitude}, index=stations)
    return TransportNetwork(links, pairs, positions, name="seville")


def seville_start(network: TransportNetwork) -> Array:
    r"""The published start: capacities uniform on [15, 40], drawn with seed 1.

    Parameters
    ----------
    network
        What :func:`seville` returned.

    Returns
    -------
    numpy.ndarray
        Shape (88,), in the order of the links.

    Raises
    ------
    ProblemError
        The network is not Seville's.
    """
    require_network(network)
    if len(network.nodes) != _STATIONS or len(network.tail) != _LINKS:
        raise ProblemError(f"{network!r} is not the network of seville(), for which the start is")
    return 15 + 25 * _draws(np.random.RandomState(_SEED))[network.tail, network.head]


def _coordinates() -> tuple[Array, Array]:
    require("openpyxl", "transport")
    path = fetch("seville/coordinates.xlsx")
    sheet = pd.read_excel(path, header=None, usecols=[2, 6], engine="openpyxl")
    longitude, latitude = sheet.to_numpy(dtype=np.float64).T
    return longitude, latitude


def _great_circle(longitude: Array, latitude: Array) -> Array:
    """Haversine formula, in km."""
    x, y = np.radians(longitude), np.radians(latitude)
    half = (
        np.sin((y[:, None] - y) / 2) ** 2
        + np.cos(y)[:, None] * np.cos(y) * np.sin((x[:, None] - x) / 2) ** 2
    )
    return np.asarray(2 * _EARTH_RADIUS * np.arcsin(np.sqrt(half)))


def _candidate_distance(great_circle: Array) -> Array:
    distance = np.full_like(great_circle, np.inf)
    for station, neighbours in _NEIGHBOURS.items():
        for neighbour in neighbours:
            ends = station - 1, neighbour - 1
            distance[ends] = distance[ends[::-1]] = great_circle[ends]
    return distance


def _linked(minutes: Array) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    nearest = np.argsort(minutes, axis=1, kind="stable")[:, :_NEAREST]
    chosen = np.zeros(minutes.shape, dtype=np.bool_)
    np.put_along_axis(chosen, nearest, True, axis=1)
    return (chosen | chosen.T) & (minutes <= _LONGEST_LINK)


def _demand() -> Array:
    demand = np.zeros((_STATIONS, _STATIONS))
    for zone, stations in enumerate((_OUTER, _MIDDLE, _CENTRE)):
        columns = np.array(stations) - 1
        demand[:, columns] = np.array(_DEMAND_TO_ZONES)[:, zone, None]
    for (o, dest), passengers in _DEMAND_EXCEPTIONS.items():
        demand[o - 1, dest - 1] = passengers
    return demand


def _detour() -> Array:
    factor = np.ones((_STATIONS, _STATIONS))
    pairs = list(itertools.combinations(range(_STATIONS), 2))
    penalised = np.random.RandomState(_SEED).random_sample(len(pairs)) < 0.4
    for (first, second), penalty in zip(pairs, penalised, strict=True):
        factor[first, second] = factor[second, first] = 1.2 if penalty else 1.0
    return factor


def _fare_noise() -> Array:
    random = np.random.RandomState(_SEED)
    return sum(
        (np.where(_draws(random) > 0.5, step, -step) for step in (1.0, 2.0)),
        start=np.zeros((_STATIONS, _STATIONS)),
    )


def _draws(random: np.random.RandomState) -> Array:
    """A square matrix of uniform numbers, filled column by column as upstream's MATLAB does."""
    return random.random_sample((_STATIONS, _STATIONS)).T
