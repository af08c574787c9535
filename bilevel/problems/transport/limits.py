"""What a plan has to respect: bounds on capacities, a budget, a least share of every demand."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from bilevel.errors import InfeasibleError, OptionError, ProblemError
from bilevel.options import check_optional_positive
from bilevel.problems.transport.least_cost import least_construction_cost
from bilevel.problems.transport.network import TransportNetwork, require_network
from bilevel.problems.transport.routes import Array, RouteFinder

#: What limits have to leave free between them, relative to each.
_ROOM = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class PlanLimits:
    r"""Constraints of the planner.

    Parameters
    ----------
    floor : float, optional
        :math:`a_{\min} > 0`, the least capacity of a link while a plan is sought: without any, a
        link's multiplier is not unique. By default 1e-5 of the pairs' mean demand, and less where a
        least share asks for as little. Finished plans leave out what is not used.
    ceiling : float or array of shape (E,), optional
        :math:`a_{\max}`, the largest capacity of each link.
    budget : float, optional
        Bound on the construction cost :math:`\sum_e c_e a_e`.
    least_share : float or array of shape (K,), optional
        Least share of each pair's demand that is to travel by the network, in the order of
        ``network.pairs``, which leaves out pairs without demand.

    Raises
    ------
    OptionError
        A bound is not a number, or out of range.
    """

    floor: float | None = None
    ceiling: npt.ArrayLike | None = None
    budget: float | None = None
    least_share: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        check_optional_positive("floor", self.floor)
        check_optional_positive("budget", self.budget)
        _numbers("ceiling", self.ceiling)
        _numbers("least_share", self.least_share)

    def of(self, network: TransportNetwork) -> Bounds:
        """The limits as arrays that fit a network.

        Raises
        ------
        OptionError
            An array does not fit the network.
        ProblemError
            It is no network, a limit leaves no room above the floor, or no tolls could attract a
            pair's least share.
        InfeasibleError
            No capacities within the ceiling and the budget could carry the least shares.
        """
        require_network(network)
        links, pairs = len(network.tail), len(network.origin)
        upper = _spread("ceiling", self.ceiling, np.inf, links, "links")
        least = _spread("least_share", self.least_share, 0.0, pairs, "pairs")
        mean = float(np.mean(network.demand))
        # What is negligible is so beside every flow that a least share asks for.
        needed = (least * network.demand)[least > 0]
        small = max(min(1e-4 * mean, 1e-2 * needed.min(initial=np.inf)), 1e-7 * mean)
        floor = 0.1 * small if self.floor is None else self.floor
        lower = np.full(links, floor)
        if not np.all(upper > 0):
            raise OptionError(f"ceiling: found {np.min(upper):g}, expected positive capacities")
        if not np.all(upper > floor):
            raise ProblemError(
                f"ceiling: the smallest is {np.min(upper):g} and the floor is {floor:g}; give "
                "a smaller floor, and leave links that must not be built out of the network"
            )
        budget = np.inf if self.budget is None else float(self.budget)
        if network.construction_cost @ lower >= budget:
            raise ProblemError(
                f"budget={budget:g} does not pay for the floor of {floor:g} on all links, "
                f"{network.construction_cost @ lower:g}: give a smaller floor or a larger budget"
            )
        if not (np.all(least >= 0) and np.all(least < 1)):
            raise OptionError(
                f"least_share: found {least[(least < 0) | (least >= 1)][0]:g}, expected shares of "
                "at least 0 and below 1"
            )
        bounds = Bounds(lower, upper, budget, least, negligible=0.9 * small)
        require_attainable(network, bounds)
        return bounds


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Limits as arrays: capacities (E,), the budget, infinite where absent, shares (K,).

    A capacity that exceeds the floor by less than nine times the floor, and less than
    ``negligible``, is what a search leaves on a link that it does not build.
    """

    lower: Array
    upper: Array
    budget: float
    least_share: Array
    negligible: float

    @property
    def absent(self) -> bool:
        """Whether there is none but the floor."""
        bounded = np.isfinite(self.budget) or np.any(np.isfinite(self.upper))
        return not (bounded or np.any(self.least_share > 0))

    def built(self, capacity: Array) -> Array:
        """A plan without the links that a search has left at the floor."""
        left = self.lower + np.minimum(9 * self.lower, self.negligible)
        return np.where(capacity > left, capacity, 0.0)

    def excesses(self, capacity: Array, cost: float, share: Array) -> Array:
        """Over ceilings and the budget, relative to them, and shortfalls of shares; or below 0."""
        over = [*(capacity / self.upper - 1), cost / self.budget - 1]
        return np.concatenate([over, self.least_share - share])


def bounds_of(network: TransportNetwork, limits: PlanLimits | Bounds | None) -> Bounds:
    """Limits as arrays; those that are, or none, included."""
    if isinstance(limits, Bounds):
        return limits
    if not isinstance(limits, PlanLimits | None):
        raise OptionError(f"limits={limits!r}, expected PlanLimits(...)")
    return (PlanLimits() if limits is None else limits).of(network)


def require_attainable(network: TransportNetwork, bounds: Bounds) -> None:
    """Refuse least shares that no tolls, or no capacities within the other limits, allow.

    Raises
    ------
    ProblemError, InfeasibleError
        As :meth:`PlanLimits.of`.
    """
    cost = RouteFinder(network)(network.travel_cost).cost
    largest = 1 / (1 + np.exp(np.minimum(cost - network.alternative_cost, 700.0)))
    beyond = np.flatnonzero(bounds.least_share >= largest)
    if len(beyond):
        k = beyond[0]
        o, dest = (network.nodes[ends[k]] for ends in (network.origin, network.destination))
        raise ProblemError(
            f"least_share: {bounds.least_share[k]:g} of the demand from {o!r} to {dest!r} is to be "
            f"served, and with ample capacity {largest[k]:.4g} would travel by the network "
            f"({len(beyond)} such pairs): lower these shares, or the links' travel costs"
        )
    _require_consistent(network, bounds)


def _require_consistent(network: TransportNetwork, bounds: Bounds) -> None:
    """The program, an interior-point method's, needs a little room to spare."""
    served = bounds.least_share * network.demand
    if not np.any(served) or (np.isinf(bounds.budget) and np.all(np.isinf(bounds.upper))):
        return
    affordable = bounds.budget * (1 - _ROOM)
    cost = least_construction_cost(network, served, bounds.lower, bounds.upper * (1 - _ROOM))
    if np.isinf(cost):
        raise InfeasibleError(
            "least_share and ceiling: no capacities up to the ceilings carry the least shares of "
            "all pairs at once: lower the shares, or raise the ceilings"
        )
    if cost >= affordable:
        raise InfeasibleError(
            f"least_share and budget: capacities that carry the least shares cost {cost:.6g} at "
            f"the least, and the budget is {bounds.budget:g}: lower the shares, or raise the budget"
            + ("" if np.all(np.isinf(bounds.upper)) else " or the ceilings")
        )


def _numbers(name: str, value: npt.ArrayLike | None) -> None:
    if value is None:
        return
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if np.any(np.isnan(array)) or array.ndim > 1:
        raise OptionError(f"{name}={value!r}, expected a number, or one for each")


def _spread(
    name: str, value: npt.ArrayLike | None, default: float, count: int, things: str
) -> Array:
    array = np.asarray(default if value is None else value, dtype=np.float64)
    if array.ndim == 1 and len(array) != count:
        raise OptionError(
            f"{name} has {len(array)} entries for {count} {things}: expected one a row of "
            f"network.{things}"
        )
    return np.broadcast_to(array, (count,)).copy()
