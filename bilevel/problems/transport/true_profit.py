"""What the capacities of a run earn at the passengers' own response, as the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bilevel.callbacks import Callback, Record
from bilevel.options import check_count
from bilevel.problems.transport.follower import Passengers
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.routes import Array, RoutePool

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run


class TrueProfit(Callback):
    r"""Add :math:`-f(a, y_g)` to the history, as ``true_profit``.

    The history's ``upper`` is f at the perturbed response, which favours the leader; its distance
    from the true one tells how much of a plan is hope. Each value costs one more response. To stop
    where it no longer rises, put ``EarlyStopping("true_profit", mode="max")`` behind it.

    Parameters
    ----------
    network : TransportNetwork
    every : int
        Of the logged records the first, and each so many later.
    """

    def __init__(self, network: TransportNetwork, every: int = 1) -> None:
        check_count("every", every)
        self.network, self.every = network, every
        self._passengers = Passengers(network)
        self._pool = RoutePool(network)
        self._toll: Array | None = None

    def on_start(self, run: Run) -> None:
        """Begin with no routes known."""
        self._pool, self._toll = RoutePool(self.network), None

    def on_log(self, run: Run, record: Record) -> None:
        """Solve for the passengers' response to the present capacities."""
        if (len(run.records) - 1) % self.every:
            return
        network, capacity = self.network, run.state.upper.vector()
        answer = self._passengers.respond(
            capacity, network.alternative_cost, self._pool, self._toll
        )
        self._toll = answer.toll
        revenue = (network.demand * network.fare) @ answer.share
        record["true_profit"] = float(revenue - network.construction_cost @ capacity)
