"""Transport planning as a :class:`~bilevel.BilevelProblem`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bilevel.domains import Box, NonNegative
from bilevel.errors import VariableError
from bilevel.problem import BilevelProblem
from bilevel.problems.transport.commodities import Commodities, Grouping
from bilevel.problems.transport.follower import Passengers
from bilevel.problems.transport.limits import Bounds, PlanLimits, bounds_of
from bilevel.problems.transport.network import TransportNetwork, require_network
from bilevel.problems.transport.response import PassengerResponse


def transport_problem(
    network: TransportNetwork,
    limits: PlanLimits | Bounds | None = None,
    *,
    commodities: Grouping = "destinations",
    tolerance: float = 1e-9,
) -> BilevelProblem:
    r"""Choose the capacities of a network's links for profit; passengers answer to them.

    .. math::
        \min_{a} \; & f(a, y) = \sum_e c_e a_e - \sum_k m_k w_k f_k \\
        \text{s.t.} \; & a_{\min} \le a \le a_{\max}, \quad \sum_e c_e a_e \le B,
            \quad f_k \ge s_k, \\
        & y = (f, x) \in \operatorname*{arg\,min}_{0 \le f \le 1,\, x \ge 0} \;
            \sum_k w_k \bigl[ f_k \ln f_k + (1 - f_k) \ln (1 - f_k) - 1 + u_k (1 - f_k) \bigr]
            + \sum_e d_e \ell_e(x) \\
        & \qquad \text{s.t.} \quad \ell(x) \le a \quad \text{and flows } x \text{ that carry }
            w_k f_k \text{ from origin to destination,}

    where :math:`\ell_e(x)` is the load of link e, the sum of its flows. x of the bilevel problem
    is a, a float64 tensor of shape (E,); its y is ``{"share": f, "flow": x}`` of shapes (K,) and
    (E, J). See :func:`transport_start` for a start. The problem brings its own exact response, so
    that

    >>> outer = DifferenceOfConvex(extrapolation=0.9)
    >>> rising = Geometric(1.0, 200.0, steps=200)
    >>> BLOCC(penalty=rising, outer=outer).solve(problem, a0, y0)  # doctest: +SKIP

    Every passenger counts in every term: in the code published with the source, capacity's
    multiplier enters the flows' gradients without the demand, as does the fare those of the
    perturbed response, so that its fixed points are not optima, nor its multipliers the gradient of
    the value function.

    Parameters
    ----------
    network : TransportNetwork
    limits : PlanLimits or Bounds, optional
        Bounds on capacities, a budget, least shares. The latter are for difference-of-convex steps.
    commodities : {"destinations", "pairs"}
        What flows are told apart by. Those to one destination may be added up, for conservation is
        linear; told apart by pairs, the program has the variables and constraints of the source,
        and the same optimum.
    tolerance : float
        Of the responses, see :class:`~bilevel.problems.transport.Passengers`.

    Raises
    ------
    OptionError, ProblemError, InfeasibleError
        As :meth:`PlanLimits.of`.
    VariableError
        When it is evaluated where x or y has another form.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, section 4.3.
    """
    bounds = bounds_of(network, limits)
    grouped = Commodities(network, commodities)
    c, d, w, u, m = (
        torch.from_numpy(each.copy())
        for each in (
            network.construction_cost,
            network.travel_cost,
            network.demand,
            network.alternative_cost,
            network.fare,
        )
    )
    bounded = torch.from_numpy(np.flatnonzero(bounds.least_share > 0))
    least = torch.from_numpy(bounds.least_share)[bounded]

    def parts(a: Tensor, y: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        shapes = {"share": (len(w),), "flow": (len(c), grouped.count)}
        found = {name: tuple(each.shape) for name, each in y.items()} if _named(y) else type(y)
        if found != shapes:
            raise VariableError(f"y is {found}, this problem's is {shapes}: see transport_start()")
        if tuple(a.shape) != (len(c),):
            raise VariableError(
                f"x has shape {tuple(a.shape)}, expected ({len(c)},): a capacity for each link"
            )
        return y["share"], y["flow"]

    def upper(a: Tensor, y: dict[str, Tensor]) -> Tensor:
        share, _ = parts(a, y)
        return torch.dot(c, a) - torch.dot(w * m, share)

    def lower(a: Tensor, y: dict[str, Tensor]) -> Tensor:
        share, flow = parts(a, y)
        rest = 1 - share
        entropy = torch.xlogy(share, share) + torch.xlogy(rest, rest)
        return torch.dot(w, entropy - 1 + u * rest) + torch.dot(d, flow.sum(1))

    def excess_load(a: Tensor, y: dict[str, Tensor]) -> Tensor:
        return y["flow"].sum(1) - a

    def conservation(a: Tensor, y: dict[str, Tensor]) -> Tensor:
        return grouped.conservation(y["share"], y["flow"])

    def limits_exceeded(a: Tensor, y: dict[str, Tensor]) -> Tensor:
        spent = (torch.dot(c, a) - bounds.budget)[None]
        missing = least - y["share"][bounded]
        return torch.cat([spent, missing] if np.isfinite(bounds.budget) else [missing])

    return BilevelProblem(
        upper=upper,
        lower=lower,
        lower_constraints=excess_load,
        lower_equalities=conservation,
        upper_constraints=(limits_exceeded if np.isfinite(bounds.budget) or len(bounded) else None),
        upper_domain=Box(torch.from_numpy(bounds.lower), torch.from_numpy(bounds.upper)),
        lower_domain={"share": Box(0.0, 1.0), "flow": NonNegative()},
        lower_response=PassengerResponse(Passengers(network, tolerance), bounds, grouped),
    )


def transport_start(
    network: TransportNetwork,
    capacity: float | npt.ArrayLike | None = None,
    *,
    commodities: Grouping = "destinations",
) -> tuple[Tensor, dict[str, Tensor]]:
    """A start (x, y) of :func:`transport_problem`: these capacities, no flows, half of all shares.

    Parameters
    ----------
    network : TransportNetwork
    capacity : float or array of shape (E,), optional
        By default a quarter of all demand, spread evenly over the links: scarce ones, since ample
        ones carry no toll that tells links apart.
    commodities : {"destinations", "pairs"}
        As in the problem.

    Raises
    ------
    ProblemError
        A capacity is no number >= 0, or there is not one a link.
    """
    require_network(network)
    links, pairs = len(network.tail), len(network.origin)
    if capacity is None:
        capacity = 0.25 * network.demand.sum() / links
    if np.ndim(capacity) == 0:
        capacity = np.full(links, capacity)
    a = torch.from_numpy(network.per_link("capacity", capacity))
    flows = Commodities(network, commodities).count
    half = torch.full((pairs,), 0.5, dtype=torch.float64)
    return a, {"share": half, "flow": torch.zeros(links, flows, dtype=torch.float64)}


def _named(y: object) -> bool:
    return isinstance(y, dict) and set(y) == {"share", "flow"}
