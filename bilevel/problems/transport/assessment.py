"""What a plan is worth: its true profit, whoever proposed it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from bilevel.problems.transport.exact import exact_response
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.tables import Array

if TYPE_CHECKING:
    import networkx


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Assessment:
    r"""A plan's capacities and the travellers' certified answer to them.

    Attributes
    ----------
    network : TransportNetwork
        The network.
    capacity : numpy.ndarray
        Shape (E,): the plan, a.
    share : numpy.ndarray
        Shape (K,): the share f of each pair's demand that uses the network; unique.
    load : numpy.ndarray
        Shape (E,): the flow on each link, at most a. One of several where routes tie.
    toll : numpy.ndarray
        Shape (E,): the multiplier :math:`\lambda` of each capacity, infinite where a link is not
        built; :math:`-\lambda` is the gradient of the travellers' optimal value where that exists.
    lower_value : float
        The travellers' optimal value v(a).
    gap : float
        Relative primal–dual gap that certifies the answer, at most 1e-7.
    """

    network: TransportNetwork
    capacity: Array
    share: Array
    load: Array
    toll: Array
    lower_value: float
    gap: float

    @property
    def revenue(self) -> float:
        r"""Fares paid, :math:`\sum_k w_k m_k f_k`."""
        return float((self.network.demand * self.network.fare) @ self.share)

    @property
    def construction_cost(self) -> float:
        r"""Price of the capacities, :math:`\sum_e c_e a_e`."""
        return float(self.network.construction_cost @ self.capacity)

    @property
    def profit(self) -> float:
        """Revenue minus construction cost."""
        return self.revenue - self.construction_cost

    @property
    def lower_gap(self) -> float:
        """The gap in the units of the lower objective: a bound on g less v of the answer."""
        return self.gap * max(abs(self.lower_value), float(self.network.demand.sum()))

    @property
    def profit_error(self) -> float:
        r"""Bound on the profit's error that follows from the gap, were the answer exactly feasible.

        The travellers' objective is strongly convex in the shares, with modulus :math:`4 w_k`, so
        that a gap of :math:`\Delta` leaves :math:`2 \sum_k w_k (f_k - f_k^*)^2 \le \Delta`, and by
        the Cauchy–Schwarz inequality a revenue within :math:`\sqrt{\Delta \sum_k w_k m_k^2 / 2}`.
        """
        demand, fare = self.network.demand, self.network.fare
        return float(np.sqrt(self.lower_gap * (demand @ fare**2) / 2))

    @property
    def share_served(self) -> float:
        """Part of all demand that uses the network."""
        return float(self.network.demand @ self.share / self.network.demand.sum())

    @property
    def trimmed_capacity(self) -> Array:
        """Shape (E,): the capacity that is used, at which the travellers' optimum is the same."""
        return np.minimum(self.load, self.capacity)

    @property
    def unused_capacity(self) -> float:
        """Sum of the capacity that no one uses."""
        return float(np.sum(self.capacity - self.trimmed_capacity))

    @property
    def trimmed_profit(self) -> float:
        r"""The profit of the trimmed plan.

        The multipliers of a capacity that is not used up are zero, so that the optimality
        conditions of the travellers' problem still hold when it is lowered to the load.
        """
        return self.revenue - float(self.network.construction_cost @ self.trimmed_capacity)

    @property
    def plan(self) -> pd.DataFrame:
        """One row a link, in the network's order: i, j, capacity, flow, toll."""
        return self.network.links[["i", "j"]].assign(
            capacity=self.capacity, flow=self.load, toll=self.toll
        )

    def to_graph(self) -> networkx.DiGraph:
        """Make a graph of the links that are built, with the plan's columns at its edges."""
        graph = self.network.to_graph()
        plan = self.plan
        for i, j, *values in zip(*(plan[column].tolist() for column in plan), strict=True):
            if values[0] > 0:
                graph.edges[i, j].update(zip(("capacity", "flow", "toll"), values, strict=True))
            else:
                graph.remove_edge(i, j)
        return graph

    def __repr__(self) -> str:
        return (
            f"Assessment(profit={self.profit:.6g}, trimmed_profit={self.trimmed_profit:.6g}, "
            f"revenue={self.revenue:.6g}, construction_cost={self.construction_cost:.6g}, "
            f"share_served={self.share_served:.4g}, gap={self.gap:.1e})"
        )


def assess(network: TransportNetwork, capacity: npt.ArrayLike) -> Assessment:
    r"""Evaluate a plan by an exact and independent solution of the travellers' problem.

    Parameters
    ----------
    network
        The network.
    capacity
        Shape (E,): the capacity of each link, in the network's order; zero where none is built.

    Returns
    -------
    Assessment
        The profit, the travellers' answer, and its certificate.

    Raises
    ------
    ProblemError
        The capacities have another shape, or one is not finite or is negative.
    ResponseError
        The answer could not be certified.

    See Also
    --------
    bilevel.problems.transport.exact.exact_response : the problem that is solved.
    """
    answer = exact_response(network, capacity)
    return Assessment(network, np.array(capacity, dtype=np.float64), *answer)
