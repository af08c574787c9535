"""The passengers' exact response as the solvers' response, and the leader's convex subproblem."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.problems.transport.capacity import ChosenCapacity
from bilevel.problems.transport.commodities import Commodities
from bilevel.problems.transport.follower import Equilibrium, Passengers
from bilevel.problems.transport.limits import Bounds
from bilevel.problems.transport.routes import Array, RoutePool
from bilevel.responses.base import Response
from bilevel.state import State, Track


@dataclasses.dataclass(frozen=True, eq=False)
class PassengerResponse(Response):
    r"""Both responses of transport planning: one follower, with shifted costs of the alternative.

    With weight w on the leader's objective, a fare m has the effect of an alternative that costs
    :math:`w\,m` more, so that the perturbed response is that of :math:`u + w\,m`; and of the
    difference-of-convex subproblem in capacities and passengers together only the capacities'
    price is new.

    Parameters
    ----------
    passengers : Passengers
    bounds : Bounds
    commodities : Commodities
    """

    passengers: Passengers
    bounds: Bounds
    commodities: Commodities
    exact = True

    def start(self, problem: BilevelProblem, state: State, track: Track) -> None:
        """Begin with no routes known."""
        track.memory = RoutePool(self.passengers.network)

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Solve at the current capacities, from the track's routes and tolls.

        Raises
        ------
        ResponseError
            The tolerance was not reached.
        NotApplicableError
            First-order steps are to keep least shares, which depend on this response alone.
        """
        if "upper_multipliers" in state.outer_state and np.any(self.bounds.least_share > 0):
            raise NotApplicableError(
                "least shares are kept by the difference-of-convex step alone, which chooses "
                "capacities and passengers' answer together: use "
                "BLOCC(outer=DifferenceOfConvex(extrapolation=0.9), ...), or plan_network()"
            )
        network = self.passengers.network
        answer = self.passengers.respond(
            state.upper.vector(),
            network.alternative_cost + weight * network.fare,
            track.memory,
            _known_toll(track),
        )
        self._place(state, track, answer)

    def linearised_step(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        slope: Array,
        proximal: float,
    ) -> bool:
        """Solve the difference-of-convex subproblem, over capacities, shares and routes."""
        network, track = self.passengers.network, state.perturbed
        price = network.construction_cost / penalty - slope
        # The budget's row in units of the dearest link.
        unit = max(float(network.construction_cost.max()), np.finfo(float).tiny)
        capacity = ChosenCapacity(
            price=price,
            center=state.upper.vector(),
            proximal=proximal / penalty,
            lower=self.bounds.lower,
            upper=self.bounds.upper,
            unit_cost=network.construction_cost / unit,
            budget=self.bounds.budget / unit,
        )
        alternative = network.alternative_cost + network.fare / penalty
        answer = self.passengers.solve(
            capacity, alternative, self.bounds.least_share, track.memory, np.maximum(price, 0.0)
        )
        state.upper.assign_vector(answer.capacity)
        self._place(state, track, answer)
        return True

    def _place(self, state: State, track: Track, answer: Equilibrium) -> None:
        y = state.lower.tree
        with torch.no_grad():
            y["share"].copy_(torch.from_numpy(answer.share))
            y["flow"].copy_(torch.from_numpy(self.commodities.flow(answer)))
        device = y["share"].device
        potentials = self.commodities.potentials(answer.toll)
        track.inequality_multipliers = torch.from_numpy(answer.toll).to(device)
        track.equality_multipliers = torch.from_numpy(potentials).to(device)
        state.gradient_evaluations += 1


def _known_toll(track: Track) -> Array | None:
    toll = track.inequality_multipliers
    return None if toll is None else toll.cpu().numpy()
