"""The passengers' response: closed forms, certificates, derivatives, and its independent check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from bilevel.errors import ResponseError, VariableError
from bilevel.problems.transport import (
    Equilibrium,
    Passengers,
    RoutePool,
    TransportNetwork,
    assess,
    follower,
    nine_node,
    random_network,
    three_node,
)
from bilevel.problems.transport.capacity import ChosenCapacity
from bilevel.problems.transport.routes import RouteFinder, RouteLayout

costs = st.floats(0.0, 8.0)


def one_link(d: float, w: float, u: float) -> TransportNetwork:
    links = pd.DataFrame({"i": [1], "j": [2], "d": [d], "c": [1.0]})
    pairs = pd.DataFrame({"o": [1], "dest": [2], "w": [w], "u": [u], "m": [1.0]})
    return TransportNetwork(links, pairs)


def respond(network: TransportNetwork, capacity: np.ndarray, shift: float = 0.0) -> Equilibrium:
    alternative = network.alternative_cost + shift * network.fare
    return Passengers(network).respond(capacity, alternative, RoutePool(network))


@given(d=costs, w=st.floats(0.1, 1e4), u=costs, part=st.floats(0.01, 0.98) | st.floats(1.02, 2.0))
@settings(max_examples=40)
def test_one_link_is_a_logit_with_a_toll_that_holds_the_load_at_capacity(
    d: float, w: float, u: float, part: float
) -> None:
    free = expit(u - d)
    answer = respond(one_link(d, w, u), np.array([part * free * w]))
    share = min(part, 1.0) * free
    # Ten times the tolerance is the most that a toll times the capacity it leaves free can be.
    toll_left = 1e-8 / ((part - 1) * free) if part > 1 else 0.0
    toll = u - d - logit(share) if part < 1 else 0.0
    spare = 1e-9 + (min(1e-8 / toll, 1e-4 * share) if part < 1 else 0.0)
    assert answer.share[0] == pytest.approx(share, rel=1e-5 + toll_left, abs=spare)
    # Tolls hold the logarithm of shares.
    assert answer.toll[0] == pytest.approx(toll, abs=1e-4 + toll_left + spare / share)


@pytest.mark.parametrize("seed", range(6))
def test_the_response_is_the_exact_one(seed: int) -> None:
    network = random_network(8, seed=seed)
    capacity = np.random.default_rng(seed).uniform(0.05, 12.0, len(network.tail))
    answer, expected = respond(network, capacity), assess(network, capacity)
    np.testing.assert_allclose(answer.share, expected.share, atol=2e-6)
    passengers = Passengers(network)
    value = passengers.value(answer.share, network.alternative_cost)
    assert value + network.travel_cost @ answer.load == pytest.approx(
        expected.lower_value, rel=1e-8
    )
    assert np.all(answer.load <= capacity + 1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_the_unit_of_demand_is_of_no_concern(scale: float) -> None:
    network = nine_node()
    pairs = network.pairs.assign(w=network.pairs["w"] * scale)
    answer = respond(TransportNetwork(network.links, pairs), np.full(30, 3.0 * scale))
    np.testing.assert_allclose(answer.share, respond(network, np.full(30, 3.0)).share, atol=1e-7)


@given(seed=st.integers(0, 10_000), floor=st.sampled_from([1e-3, 0.1, 1.0]))
@settings(max_examples=25)
def test_the_gap_certifies_the_response(seed: int, floor: float) -> None:
    random = np.random.default_rng(seed)
    network = random_network(int(random.integers(3, 9)), seed=seed)
    built = random.random(len(network.tail)) < 0.6
    capacity = floor + built * random.exponential(8.0, len(network.tail))
    passengers = Passengers(network)
    shift = random.choice([0.0, 0.1, 3.0])
    alternative = network.alternative_cost + shift * network.fare
    answer = passengers.respond(capacity, alternative, RoutePool(network))
    size = network.demand.sum()
    assert -1e-9 * size <= passengers.gap(capacity, alternative, answer) <= 1e-7 * size
    np.testing.assert_allclose(answer.share, expit(alternative - answer.cost), atol=1e-5)
    assert np.all(answer.toll * (capacity - answer.load) <= 1e-7 * size)


def test_the_toll_is_the_negative_derivative_of_the_value() -> None:
    network, passengers = nine_node(), Passengers(nine_node())
    capacity = np.random.default_rng(1).uniform(3.0, 15.0, 30)
    answer = respond(network, capacity)

    def value(a: np.ndarray) -> float:
        found = passengers.respond(a, network.alternative_cost, RoutePool(network))
        loads = network.travel_cost @ found.load
        return passengers.value(found.share, network.alternative_cost) + float(loads)

    for link in (0, 7, 18, 29):
        step = np.zeros(30)
        step[link] = 1e-3
        slope = (value(capacity + step) - value(capacity - step)) / 2e-3
        assert -answer.toll[link] == pytest.approx(slope, abs=2e-4)


def test_utilities_far_from_the_costs_leave_shares_inside_zero_and_one() -> None:
    for u in (0.0, 300.0):
        answer = respond(one_link(150.0, 1.0, u), np.array([10.0]))
        assert answer.share[0] == pytest.approx(expit(u - 150.0), abs=1e-9)
        assert 0.0 < answer.share[0] < 1.0


def test_links_without_travel_cost_are_used() -> None:
    answer = respond(one_link(0.0, 1.0, 1.0), np.array([10.0]))
    assert answer.load[0] == pytest.approx(expit(1.0), rel=1e-7)


def test_a_pool_holds_each_route_once_and_can_be_saved() -> None:
    network = nine_node()
    pool, find = RoutePool(network), RouteFinder(network)
    every = np.ones(72, dtype=bool)
    assert pool.add(find(network.travel_cost), every) == 72
    assert pool.add(find(network.travel_cost), every) == 0
    added = pool.add(find(network.travel_cost + np.arange(30) % 3), every)
    assert 0 < added < 72
    again = RoutePool(network)
    again.load_state_dict(pool.state_dict())
    assert np.array_equal(again.routes.toarray(), pool.routes.toarray())
    assert again.add(find(network.travel_cost), every) == 0


def test_shortest_routes_lead_from_origin_to_destination_at_their_cost() -> None:
    network = random_network(12, seed=3)
    cost = network.travel_cost + np.random.default_rng(0).exponential(1.0, len(network.tail))
    shortest = RouteFinder(network)(cost)
    np.testing.assert_allclose(shortest.routes @ cost, shortest.cost)
    ends = np.zeros((len(network.origin), 12))
    incidence = np.zeros((len(network.tail), 12))
    incidence[np.arange(len(network.tail)), network.tail] = 1.0
    incidence[np.arange(len(network.tail)), network.head] -= 1.0
    rows = np.arange(len(network.origin))
    ends[rows, network.origin], ends[rows, network.destination] = 1.0, -1.0
    np.testing.assert_array_equal(shortest.routes @ incidence, ends)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_the_normal_matrix_is_what_it_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    network = three_node() if seed % 2 else nine_node()
    pool, find = RoutePool(network), RouteFinder(network)
    for _ in range(4):
        cost = random.exponential(1.0, len(network.tail))
        pool.add(find(cost), random.random(len(network.origin)) < 0.8)
    layout = RouteLayout(pool.routes, pool.pair)
    t = random.exponential(1.0, len(pool))
    share = t / layout.per_pair(t)[layout.local]
    weight = random.exponential(1.0, len(layout.pairs))
    routes = pool.routes.toarray()
    expected = np.zeros((len(network.tail), len(network.tail)))
    for k, pair in enumerate(layout.pairs):
        own = pool.pair == pair
        mean = share[own] @ routes[own]
        centred = routes[own] - mean
        expected += centred.T @ np.diag(t[own]) @ centred + weight[k] * np.outer(mean, mean)
    np.testing.assert_allclose(layout.normal_matrix(share, t, weight), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capacity": np.ones(5)}, r"capacity has shape \(5,\), expected \(6,\)"),
        ({"capacity": [1, 1, 0, 1, 1, 1]}, r"capacity\[2\] is 0, expected a finite number > 0"),
        ({"capacity": [1, 1, 1, np.nan, 1, 1]}, r"capacity\[3\] is nan"),
        ({"capacity": [np.inf] * 6}, r"capacity\[0\] is inf"),
        ({"alternative": np.ones((6, 1))}, r"alternative has shape \(6, 1\)"),
        (
            {"alternative": [1, np.inf, 1, 1, 1, 1]},
            r"alternative\[1\] is inf, expected a finite number$",
        ),
        ({"toll": [-1.0] * 6}, r"toll\[0\] is -1, expected a finite number >= 0"),
    ],
)
def test_what_no_one_can_respond_to_is_refused(wrong: dict[str, object], message: str) -> None:
    network = three_node()
    given = {"capacity": np.ones(6), "alternative": network.alternative_cost, **wrong}
    with pytest.raises(VariableError, match=message):
        Passengers(network).respond(**given, pool=RoutePool(network))  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_high_least_shares_are_kept_whatever_a_pairs_demand(least: float, seed: int) -> None:
    network = random_network(8, seed=seed)
    random = np.random.default_rng(seed)
    pairs = network.pairs.assign(
        w=10.0 ** random.uniform(-2, 1, len(network.pairs)), u=network.alternative_cost + 9.0
    )
    network = TransportNetwork(network.links, pairs)
    free, bound = np.full(len(network.tail), 1e-4), np.full(len(network.tail), np.inf)
    capacity = ChosenCapacity(
        price=np.ones(len(free)), center=free, proximal=0.0, lower=free, upper=bound,
        unit_cost=network.construction_cost, budget=np.inf,
    )  # fmt: skip
    answer = Passengers(network).solve(
        capacity, network.alternative_cost, np.full(len(pairs), least), RoutePool(network)
    )
    assert answer.share.min() >= least - 1e-7
    assert (answer.load <= answer.capacity * (1 + 1e-6)).all()


def test_tolls_that_are_far_from_the_solution_cost_a_second_attempt_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, attempts = nine_node(), []
    solve = follower.solve_routes

    def stalling(*args: Any, warm: bool, **options: Any) -> Iterator[Any]:
        attempts.append(warm)
        if warm and len(attempts) == 1:
            raise ResponseError("stalled")
        yield from solve(*args, warm=warm, **options)

    monkeypatch.setattr(follower, "solve_routes", stalling)
    capacity = np.full(30, 3.0)
    passengers = Passengers(network)
    far = passengers.respond(
        capacity, network.alternative_cost, RoutePool(network), toll=np.full(30, 50.0)
    )
    assert attempts[:2] == [True, False]
    np.testing.assert_allclose(far.share, respond(network, capacity).share, atol=1e-6)

    def failing(*args: Any, **options: Any) -> Iterator[Any]:
        yield from ()
        raise ResponseError("stalled")

    monkeypatch.setattr(follower, "solve_routes", failing)
    with pytest.raises(ResponseError, match="stalled"):
        passengers.respond(
            capacity, network.alternative_cost, RoutePool(network), toll=np.full(30, 50.0)
        )
