"""What flows are told apart by: the destination of passengers, or their origin as well."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from bilevel.errors import OptionError
from bilevel.problems.transport.follower import Equilibrium
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.routes import Array

Grouping: TypeAlias = Literal["destinations", "pairs"]


class Commodities:
    r"""Flows x of shape (E, J), conserved at every node for each of J commodities.

    Attributes
    ----------
    count : int
        J: the number of destinations, or of pairs.
    of_pair : array of shape (K,)
        The commodity to which a pair's passengers belong.
    """

    def __init__(self, network: TransportNetwork, grouping: Grouping) -> None:
        if grouping not in ("destinations", "pairs"):
            raise OptionError(f"commodities={grouping!r}, expected 'destinations' or 'pairs'")
        self.network = network
        targets, self._target = np.unique(network.destination, return_inverse=True)
        self._targets = targets
        self._by_pairs = grouping == "pairs"
        self.of_pair = np.arange(len(network.origin)) if self._by_pairs else self._target
        self.count = len(network.origin) if self._by_pairs else len(targets)

    def conservation(self, share: Tensor, flow: Tensor) -> Tensor:
        """Outflow less inflow less the demand that sets out, of shape (nodes * J,)."""
        network = self.network
        tail, head, origin, destination, of_pair = (
            torch.from_numpy(each.copy()).to(flow.device)
            for each in (
                network.tail, network.head, network.origin, network.destination, self.of_pair
            )
        )  # fmt: skip
        served = torch.from_numpy(network.demand.copy()).to(flow.device) * share
        net = flow.new_zeros(len(network.nodes), self.count)
        net = net.index_add(0, tail, flow).index_add(0, head, -flow)
        net = net.index_put((origin, of_pair), -served, accumulate=True)
        net = net.index_put((destination, of_pair), served, accumulate=True)
        return net.flatten()

    def flow(self, answer: Equilibrium) -> Array:
        """Flows x on the links, of shape (E, J)."""
        layout = answer.layout
        commodity = self.of_pair[layout.pairs][layout.local]
        routes = len(answer.flow)
        by_commodity = csr_array(
            (answer.flow, (np.arange(routes), commodity)), shape=(routes, self.count)
        )
        return (layout.links @ by_commodity).toarray()

    def potentials(self, toll: Array) -> Array:
        """Multipliers of :meth:`conservation`: what is left of the way, tolls included, negated."""
        network = self.network
        size = len(network.nodes)
        cost = network.travel_cost + toll
        backwards = csr_array((cost, (network.head, network.tail)), shape=(size, size))
        left = dijkstra(backwards, indices=self._targets)
        left[np.isinf(left)] = np.max(left, where=np.isfinite(left), initial=0.0)
        per_commodity = left[self._target] if self._by_pairs else left
        return -per_commodity.T.ravel()
