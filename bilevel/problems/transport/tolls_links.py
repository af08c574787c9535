"""The profit as a function of one link's toll, the others fixed: its jumps, and a grid between."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.tables import Array
from bilevel.problems.transport.tolls import pair_profits
from bilevel.problems.transport.tolls_routes import Routes

SAMPLES = 25
NEGLIGIBLE = 15.0  # At this much above the alternative's cost, one in three million travels.
SAME = 1e-8


def link_candidates(
    network: TransportNetwork, toll: Array, link: int, routes: Routes
) -> tuple[Array, Array]:
    r"""Tolls of one link worth considering, and the exact profit at each.

    With prices :math:`S^-` and construction costs :math:`C^-` of the routes that avoid link
    e = (i, j), a pair k = (o, t) takes the link while its toll :math:`\lambda_e` is at most

    .. math:: b_k = S^-_{ot} - (S^-_{oi} + d_e + S^-_{jt}),

    so that between these breakpoints the profit is a smooth function of one variable, and at them
    it jumps down where routes by the link are cheaper to construct and up where they are not.
    The candidates are all breakpoints, zero, infinity, and a grid that is refined at its best:
    maxima at breakpoints, the usual ones, are met exactly, others to the refined grid's width.

    Parameters
    ----------
    network
        The network.
    toll
        Shape (E,): the tolls.
    link
        The index of the link.
    routes
        The cheapest ones at these tolls.

    Returns
    -------
    candidates, profits : numpy.ndarray
        In no particular order.
    """
    routes = routes.without(network, toll, link)
    i, j = network.tail[link], network.head[link]
    origin, destination = network.origin, network.destination
    otherwise, cost = routes.price[origin, destination], routes.cost[origin, destination]
    by_link = routes.price[origin, i] + network.travel_cost[link] + routes.price[j, destination]
    concerned = np.flatnonzero(by_link + SAME < otherwise)
    profits = pair_profits(network, otherwise, cost)
    base = float(profits.sum())
    if not len(concerned):
        return np.array([np.inf]), np.array([base])

    by_link, otherwise = by_link[concerned], otherwise[concerned]
    cost_by_link = (
        routes.cost[origin[concerned], i]
        + network.construction_cost[link]
        + routes.cost[j, destination[concerned]]
    )
    breakpoints = otherwise - by_link + np.where(cost_by_link < cost[concerned], SAME, -SAME)
    demand, reach = network.demand[concerned], network.alternative_cost[concerned] - by_link
    margin = demand * (network.fare[concerned] - cost_by_link)
    lost = profits[concerned]

    def change(candidates: Array) -> Array:
        at = candidates[:, None]
        changes: Array = np.sum((at < breakpoints) * (margin * expit(reach - at) - lost), axis=1)
        return changes

    kinks = (otherwise - by_link)[np.isfinite(otherwise)]
    limit = max(float(reach.max()), 0.0) + NEGLIGIBLE
    grid = np.linspace(0.0, max(limit - NEGLIGIBLE / 2, 0.0), SAMPLES)
    candidates = np.unique(np.concatenate([kinks[kinks < limit], grid]))
    changes = change(candidates)
    best = int(np.argmax(changes))
    ends = candidates[max(best - 1, 0)], candidates[min(best + 1, len(candidates) - 1)]
    refined = np.linspace(*ends, SAMPLES)[1:-1]
    return (
        np.concatenate([[np.inf], candidates, refined]),
        base + np.concatenate([[0.0], changes, change(refined)]),
    )
