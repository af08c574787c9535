"""The travellers' problem at given capacities, in node–link form, solved as a cone program.

Slow and independent: it shares nothing with the response that the outer solvers use, and judges it.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import xlogy

from bilevel.errors import ResponseError
from bilevel.problems.transport.network import IndexArray, TransportNetwork, require_network
from bilevel.problems.transport.tables import Array

_GAP = 1e-7
_SMALLEST_LOAD = 1e-6  # of the largest demand: about the root of the solver's tolerance
# The error of the shares is the root of the gap, hence more digits than the certificate asks for;
# with its own regularisation, 1e-8, and longer steps, Clarabel stalls before them.
_CLARABEL = {
    "tol_gap_abs": 1e-12,
    "tol_gap_rel": 1e-12,
    "tol_feas": 1e-12,
    "static_regularization_constant": 1e-11,
}
#: Shares of the longest steps; shorter ones where a solution is not certified.
_STEPS = (0.9, 0.8, 0.7)


class ExactResponse(NamedTuple):
    """The travellers' optimum, certified: shares, loads, tolls, value, and primal–dual gap."""

    share: Array
    load: Array
    toll: Array
    lower_value: float
    gap: float


class _NodeLinkForm(NamedTuple):
    """Flows in columns, each of one link towards one destination; unbuilt links have none.

    ``divergence @ flow = supply @ share`` at each node and destination; ``usage @ flow`` are loads.
    """

    built: IndexArray
    served: IndexArray
    link: IndexArray
    divergence: Any
    supply: Any
    usage: Any


def exact_response(network: TransportNetwork, capacity: npt.ArrayLike) -> ExactResponse:
    r"""Solve the travellers' problem and certify the solution.

    With a share :math:`f_k \in [0, 1]` of each pair k and link flows :math:`x^t \ge 0` towards each
    destination t,

    .. math::
        v(a) = \min_{f, x} \; \sum_k w_k \bigl[f_k \ln f_k - f_k + (1 - f_k) \ln (1 - f_k)
        - (1 - f_k) + u_k (1 - f_k)\bigr] + \sum_e d_e \sum_t x^t_e
        \quad\text{s.t.}\quad \sum_t x^t_e \le a_e,

    with the demand :math:`w_k f_k` of each pair as supply at its origin. The multipliers of the
    capacities are the tolls :math:`\lambda`; with the length :math:`S_k` of the shortest path in
    :math:`d + \lambda`, the dual function

    .. math::
        D(\lambda) = -\sum_k w_k \bigl[\ln (e^{-u_k} + e^{-S_k}) + 1\bigr] - \lambda^\top a
        \;\le\; v(a)

    is evaluated at the solver's tolls with true shortest paths: the difference is the certificate.

    Parameters
    ----------
    network
        The network.
    capacity
        Shape (E,), finite and not negative. Links of capacity zero are taken out of the network.

    Returns
    -------
    ExactResponse
        ``share`` (K,), zero for pairs that no path joins. ``load`` (E,); what is less than one
        millionth of the largest demand is noise of the solver and reported as zero. ``toll`` (E,),
        infinite on links of capacity zero. ``lower_value`` is the primal value, and ``gap`` the
        difference to the dual bound, relative to :math:`\max(|v|, \sum_k w_k)`.

    Raises
    ------
    ProblemError
        The capacities have another shape, or one is not finite or is negative.
    ResponseError
        The gap or a constraint's relative violation is above 1e-7, or the solver fails.
    """
    require_network(network)
    a = network.per_link("capacity", capacity)
    form = _node_link_form(network, a)
    for step in _STEPS[:-1]:
        with suppress(ResponseError):
            return _certified(network, form, a, step)
    return _certified(network, form, a, _STEPS[-1])


def _certified(
    network: TransportNetwork, form: _NodeLinkForm, capacity: Array, step: float
) -> ExactResponse:
    total = float(network.demand.sum())
    # No load exceeds the total demand; a scale that is far larger would cost the solver digits.
    room = np.minimum(capacity[form.built], total)
    share = np.zeros(len(network.pairs))
    toll = np.full(len(capacity), np.inf)
    share[form.served], flow, toll[form.built] = _solve(network, form, room, step)

    load = np.zeros(len(capacity))
    load[form.built] = form.usage @ flow
    imbalance = form.divergence @ flow - form.supply @ share[form.served]
    violation = float(
        max(np.abs(imbalance).max(initial=0.0), (load[form.built] - room).max(initial=0.0))
    )
    primal = _primal_value(network, share, load)
    dual = _dual_value(network, form.built, toll[form.built], room)
    gap = abs(primal - dual) / max(abs(primal), total)
    if not max(gap, violation / total) <= _GAP:
        raise ResponseError(
            f"the follower of {network!r} was solved to a gap of {gap:.1e} and a violation of "
            f"{violation / total:.1e}, relative to its costs and demand; expected at most {_GAP}: "
            "rescale costs or demands that differ by many orders of magnitude"
        )
    load[load < _SMALLEST_LOAD * network.demand.max()] = 0.0
    return ExactResponse(share, load, toll, primal, gap)


def _node_link_form(network: TransportNetwork, capacity: Array) -> _NodeLinkForm:
    size = len(network.nodes)
    built = np.flatnonzero(capacity > 0)
    tail, head = network.tail[built], network.head[built]
    graph = csr_array((np.ones(len(built)), (tail, head)), shape=(size, size))
    reachable = np.isfinite(dijkstra(graph, unweighted=True))
    served = np.flatnonzero(reachable[network.origin, network.destination])
    destinations, group = np.unique(network.destination[served], return_inverse=True)

    leads_there = reachable[head][:, destinations] & (tail[:, None] != destinations)
    link, towards = np.nonzero(leads_there)
    column, rows = np.arange(len(link)), len(destinations) * size
    divergence = csr_array(
        (
            np.repeat([1.0, -1.0], len(link)),
            (
                np.concatenate([towards * size + tail[link], towards * size + head[link]]),
                np.concatenate([column, column]),
            ),
        ),
        shape=(rows, len(link)),
    )
    supply = csr_array(
        (
            network.demand[served],
            (group * size + network.origin[served], np.arange(len(served))),
        ),
        shape=(rows, len(served)),
    )
    # The balance at the destination itself follows from the others.
    balanced = np.ones(rows, dtype=np.bool_)
    balanced[np.arange(len(destinations)) * size + destinations] = False
    balanced &= np.diff(divergence.indptr) > 0
    usage = csr_array((np.ones(len(link)), (link, column)), shape=(len(built), len(link)))
    return _NodeLinkForm(built, served, link, divergence[balanced], supply[balanced], usage)


def _solve(
    network: TransportNetwork, form: _NodeLinkForm, room: Array, step: float
) -> tuple[Array, Array, Array]:
    if form.served.size == 0:
        return np.empty(0), np.empty(0), np.zeros(len(form.built))
    cp: Any = importlib.import_module("cvxpy")  # loaded where it is used; untyped

    unit = float(network.demand.mean())
    w = network.demand[form.served] / unit
    u = network.alternative_cost[form.served]
    d = network.travel_cost[form.built][form.link]
    share = cp.Variable(len(form.served))
    flow = cp.Variable(len(form.link), nonneg=True)
    within_capacity = form.usage @ flow <= room / unit
    choice = -w @ (cp.entr(share) + cp.entr(1 - share)) + (w * u) @ (1 - share)
    problem = cp.Problem(
        cp.Minimize(choice + d @ flow),
        [form.divergence @ flow == (form.supply / unit) @ share, within_capacity],
    )
    try:
        with warnings.catch_warnings():
            # "May be inaccurate": the certificate decides, not the solver's status.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL, max_step_fraction=step, **_CLARABEL)
    except cp.SolverError as error:
        raise ResponseError(f"Clarabel failed on the follower of {network!r}: {error}") from error
    if flow.value is None:
        raise ResponseError(
            f"Clarabel ended with the status {problem.status!r} on the follower of {network!r}, "
            "which always has a solution; rescale costs or demands that differ by many orders of "
            "magnitude"
        )
    return (
        np.clip(share.value, 0.0, 1.0),
        np.maximum(flow.value, 0.0) * unit,
        np.maximum(within_capacity.dual_value, 0.0),
    )


def _primal_value(network: TransportNetwork, share: Array, load: Array) -> float:
    f, other = share, 1 - share
    per_traveller = xlogy(f, f) + xlogy(other, other) - 1 + network.alternative_cost * other
    return float(network.demand @ per_traveller + network.travel_cost @ load)


def _dual_value(network: TransportNetwork, built: IndexArray, toll: Array, room: Array) -> float:
    size = len(network.nodes)
    lengths = network.travel_cost[built] + toll
    ends = network.tail[built], network.head[built]
    distance = dijkstra(csr_array((lengths, ends), shape=(size, size)))
    shortest = distance[network.origin, network.destination]
    welfare = np.logaddexp(-network.alternative_cost, -shortest) + 1
    return float(-network.demand @ welfare - toll @ room)
