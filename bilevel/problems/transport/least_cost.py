"""What the least shares cost to construct at the least: whether limits contradict each other."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, eye_array, kron

from bilevel.errors import ResponseError
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.routes import Array

_OPTIMAL, _INFEASIBLE = 0, 2


def least_construction_cost(
    network: TransportNetwork, served: Array, lower: Array, upper: Array
) -> float:
    r"""The least construction cost of capacities that can carry demands; infinite where none can.

    .. math::
        \min_{a_{\min} \le a \le a_{\max},\, x \ge 0} \; \sum_e c_e a_e \quad \text{s.t.} \quad
        \ell(x) \le a, \quad x \text{ carries } q_k \text{ from origin to destination,}

    a linear program over the flows to each destination. Passengers who choose their routes may
    need more.

    Parameters
    ----------
    network : TransportNetwork
    served : array of shape (K,)
        q, at least one of which is positive.
    lower, upper : arrays of shape (E,)
        Bounds on the capacities; those above may be infinite.

    Raises
    ------
    ResponseError
        The solver stopped short of an answer.
    """
    nodes, links = len(network.nodes), len(network.tail)
    pairs, unit = np.flatnonzero(served), float(np.max(served))
    targets, target = np.unique(network.destination[pairs], return_inverse=True)
    across = np.arange(links)
    leaving = coo_array((np.ones(links), (network.tail, across)), shape=(nodes, links))
    entering = coo_array((np.ones(links), (network.head, across)), shape=(nodes, links))
    net = kron(eye_array(len(targets)), (leaving - entering).tocsr())
    load = kron(np.ones((1, len(targets))), eye_array(links))
    supply = np.zeros((len(targets), nodes))
    np.add.at(supply, (target, network.origin[pairs]), served[pairs] / unit)
    np.add.at(supply, (target, network.destination[pairs]), -served[pairs] / unit)
    flows = len(targets) * links
    at_least = np.append(lower / unit, np.zeros(flows))
    at_most = np.append(upper / unit, np.full(flows, np.inf))
    found = linprog(
        np.append(network.construction_cost, np.zeros(flows)),
        A_ub=block_array([[-eye_array(links), load]], format="csr"),  # type: ignore[call-overload]
        b_ub=np.zeros(links),
        A_eq=block_array([[coo_array((supply.size, links)), net]], format="csr"),
        b_eq=supply.ravel(),
        bounds=np.column_stack([at_least, at_most]),
        method="highs",
    )
    if found.status == _INFEASIBLE:
        return np.inf
    if found.status != _OPTIMAL:
        raise ResponseError(
            f"the least construction cost of the least shares was not found: {found.message}"
        )
    return unit * float(found.fun)
