"""Local search over tolls: from the tolls of a good plan to those of a better one."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import numpy.typing as npt

from bilevel.errors import OptionError, ProblemError
from bilevel.options import check_count
from bilevel.problems.transport.limits import Bounds, PlanLimits, bounds_of
from bilevel.problems.transport.network import IndexArray, TransportNetwork
from bilevel.problems.transport.tables import Array
from bilevel.problems.transport.tolls import TollPlan, toll_plan, toll_profit
from bilevel.problems.transport.tolls_links import link_candidates
from bilevel.problems.transport.tolls_routes import Routes, cheapest_routes, surcharge
from bilevel.problems.transport.tolls_routing import routing_model
from bilevel.progress import ProgressBar

INITIAL_RADIUS, LEAST_RADIUS, JOINT_STEPS = 0.3, 1e-3, 25
TOLERANCE, FINAL_TOLERANCE = 1e-5, 1e-7
ADMISSIBLE = 1e-9
ROUNDING = 1e-10
TRIED = 16


@dataclasses.dataclass(frozen=True, eq=False)
class TollPolish:
    """What :func:`polish_tolls` found.

    Attributes
    ----------
    plan : TollPlan
        The best plan. Its tolls make every pair's route the only shortest one, so that any exact
        solution of the travellers' problem at its loads reproduces the profit.
    start_profit : float
        The profit at the tolls that were given.
    profits : tuple of float
        The best profit found after the ascent from the start and after each further round.
    seconds : float
        Time taken.
    """

    plan: TollPlan
    start_profit: float
    profits: tuple[float, ...]
    seconds: float


def polish_tolls(
    network: TransportNetwork,
    toll: npt.ArrayLike,
    *,
    rounds: int = 20,
    seconds: float = np.inf,
    seed: int = 0,
    limits: PlanLimits | Bounds | None = None,
    progress: bool | None = None,
) -> TollPolish:
    r"""Improve tolls by iterated local search on the profit of :func:`toll_plan`.

    The profit is piecewise smooth in the tolls, and its local maxima lie where routes tie. Two
    ascents alternate until neither gains: steps of a linear program that moves all tolls at once
    and keeps the routes, and searches along one toll at a time, which change them. The
    first round ascends again from no tolls at all; each later one resets tolls of the best plan,
    of links near to each other or anywhere, and ascends. The result is a lower bound on the best
    profit, and no proof of it.

    Parameters
    ----------
    network
        The network.
    toll
        Shape (E,): tolls to start from; infinite where no link is built.
    rounds
        Number of restarts from changed tolls, after the ascent from the start.
    seconds
        Stop after about this time. Results can be repeated exactly only if the rounds end first.
    seed
        Seed of the changes.
    limits
        Bounds on capacities, a budget, least shares. Moves that break them are rejected, in favour
        of ones that break them less while the plan in hand does. A bound that routes share by
        splitting a pair's demand between them is respected, but not exploited.
    progress
        Show the rounds and the best profit; by default in a terminal only.

    Returns
    -------
    TollPolish
        The best plan found: no worse than the start, but for what separating its ties costs
        (a rise of each toll by at most 3e-7).

    Raises
    ------
    OptionError
        An option is out of range.
    ProblemError
        The tolls do not fit the network, or no plan within the limits was found.
    """
    check_count("rounds", rounds, least=0)
    check_count("seed", seed, least=0)
    if not seconds > 0:
        raise OptionError(f"seconds={seconds!r}, expected a positive number")
    started = time.perf_counter()
    start = toll_plan(network, toll)
    search = _TollSearch(network, limits, np.random.default_rng(seed), started + seconds)
    bar = ProgressBar(rounds + 1, 0, progress, {"profit": "profit"})
    try:
        best = search.ascend(start.toll)
        value = search.merit(best)
        profits = [toll_profit(network, best)]
        for number in range(rounds):
            bar.advance()
            bar.show({"profit": profits[-1]})
            if search.late:
                break
            changed = search.ascend(search.change(best) if number else np.zeros_like(best))
            if search.merit(changed) > value:
                best, value = changed, search.merit(changed)
            profits.append(toll_profit(network, best))
        plan = search.separated(search.ascend(best, FINAL_TOLERANCE))
    finally:
        bar.close()
    search.require_admissible(plan)
    return TollPolish(plan, start.profit, tuple(profits), time.perf_counter() - started)


class _TollSearch:
    """The moves of the search, all of which return tolls of no smaller merit."""

    def __init__(
        self,
        network: TransportNetwork,
        limits: PlanLimits | Bounds | None,
        random: np.random.Generator,
        deadline: float,
    ) -> None:
        self.network = network
        bounds = bounds_of(network, limits)
        self.bounds = None if bounds.absent else bounds
        #: What counts as a profit of one: the fares of a pair.
        self.unit = float(np.mean(network.demand * network.fare))
        self.random = random
        self.deadline = deadline

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def merit(self, toll: Array) -> float:
        """The profit, less a penalty on what exceeds the limits that no profit can outweigh."""
        if self.bounds is None:
            return toll_profit(self.network, toll)
        plan = toll_plan(self.network, toll)
        excess = self._excess(plan)
        prize = float(self.network.demand @ self.network.fare) + plan.construction_cost
        return plan.profit - (excess > ADMISSIBLE) * (1 + excess) * prize

    def least_gain(self, value: float, tolerance: float) -> float:
        """What a gain has to exceed to go on."""
        return tolerance * (self.unit + abs(value))

    def require_admissible(self, plan: TollPlan) -> None:
        excess = self._excess(plan)
        if excess > ADMISSIBLE:
            raise ProblemError(
                f"the search over tolls found no plan within the limits: the nearest exceeds them "
                f"by {excess:.3g} relative to them; start from a plan that respects them, or "
                "leave the polish out"
            )

    def _excess(self, plan: TollPlan) -> float:
        """What exceeds the limits, summed up; a search that reduces it nears them."""
        if self.bounds is None:
            return 0.0
        parts = self.bounds.excesses(plan.load, plan.construction_cost, plan.share)
        return float(np.maximum(parts - ADMISSIBLE, 0.0).sum())

    def ascend(self, toll: Array, tolerance: float = TOLERANCE) -> Array:
        """Alternate the two ascents until neither gains."""
        value = self.merit(toll)
        while not self.late:
            toll = self.close_idle_links(toll)
            toll = self.sweep_links(self.move_jointly(toll, tolerance), tolerance)
            reached = self.merit(toll)
            if reached <= value + self.least_gain(value, tolerance):
                break
            value = reached
        return self.close_idle_links(toll)

    def close_idle_links(self, toll: Array) -> Array:
        """Leave out links that hardly anyone uses, where that costs nothing."""
        load = toll_plan(self.network, toll).load
        closed = np.where(load <= 1e-6 * load.max(), np.inf, toll)
        return closed if self.merit(closed) >= self.merit(toll) else toll

    def move_jointly(self, toll: Array, tolerance: float) -> Array:
        """Sequential linear programming in a trust region."""
        value, radius = self.merit(toll), INITIAL_RADIUS
        model = routing_model(self.network, toll, 4 * radius)
        for _ in range(JOINT_STEPS):
            if radius < LEAST_RADIUS or self.late:
                break
            step = model.step(toll, radius)
            predicted = 0.0 if step is None else float(model.gradient @ step)
            if step is None or predicted < 0.1 * self.least_gain(value, tolerance):
                break
            moved = np.maximum(toll + step, 0.0)
            gain = self.merit(moved) - value
            if gain > 0.1 * predicted:
                radius *= 2 if gain > 0.7 * predicted else 1
                toll, value = moved, value + gain
                model = routing_model(self.network, toll, 4 * radius)
            else:
                radius /= 4
        return toll

    def sweep_links(self, toll: Array, tolerance: float) -> Array:
        """Search along each toll in turn, in random order, until a sweep gains little."""
        value, routes = self.merit(toll), cheapest_routes(self.network, toll)
        while True:
            before = value
            for link in self.random.permutation(len(toll)):
                if self.late:
                    return toll
                for candidate, profit in self._promising(toll, link, routes, value):
                    if profit > value:
                        moved = toll.copy()
                        moved[link] = candidate
                        reached = self.merit(moved)  # at most the profit
                        if reached > value:
                            toll, value = moved, reached
                            routes = cheapest_routes(self.network, toll)
            if value <= before + self.least_gain(before, tolerance):
                return toll

    def _promising(
        self, toll: Array, link: int, routes: Routes, value: float
    ) -> list[tuple[float, float]]:
        """Tolls of a link and the profits there, that may be better; falling.

        Where there are limits, which break them is not known: the best, and a sample of all.
        """
        candidates, profits = link_candidates(self.network, toll, link, routes)
        better = np.flatnonzero(profits > value + self.least_gain(value, ROUNDING))
        falling = better[np.argsort(-profits[better])]
        if self.bounds is None:
            chosen = falling[:1]
        else:
            rising_toll = better[np.argsort(candidates[better])]
            sample = rising_toll[:: max(1, -(-len(better) // TRIED))]
            chosen = falling[np.isin(falling, [*falling[:1], *sample])]
        return list(zip(candidates[chosen].tolist(), profits[chosen].tolist(), strict=True))

    def change(self, toll: Array) -> Array:
        """Reset the tolls of some links: to zero, to infinity, or at random."""
        count = int(np.ceil(len(toll) * 10 ** self.random.uniform(-2, 0)))
        links = self._links_near_each_other() if self.random.random() < 0.5 else self._shuffled()
        links = links[:count]
        moderate = 2 * self.random.random(count)
        resets = [
            np.zeros(count),
            np.full(count, np.inf),
            moderate,
            np.where(self.random.random(count) < 0.5, np.inf, moderate / 2),
        ]
        changed = toll.copy()
        changed[links] = resets[self.random.integers(len(resets))]
        return changed

    def _shuffled(self) -> IndexArray:
        return self.random.permutation(len(self.network.tail))

    def _links_near_each_other(self) -> IndexArray:
        """All links, by hops from a random node."""
        size = len(self.network.nodes)
        hops = np.full(size, size)
        hops[self.random.integers(size)] = 0
        for _ in range(size):
            np.minimum.at(hops, self.network.head, hops[self.network.tail] + 1)
            np.minimum.at(hops, self.network.tail, hops[self.network.head] + 1)
        shuffled = self._shuffled()
        distance = hops[self.network.tail] + hops[self.network.head]
        return shuffled[np.argsort(distance[shuffled], kind="stable")]

    def separated(self, toll: Array) -> TollPlan:
        """The plan, with ties broken by raising tolls in proportion to construction costs."""
        load = toll_plan(self.network, toll).load
        raised = toll + surcharge(self.network) * self.network.construction_cost
        used = np.where(load > 0, raised, np.inf)
        return toll_plan(self.network, used)
