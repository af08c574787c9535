"""Tolls: the profit that they imply, its exact one-link search, and the polish."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import expit

from bilevel.errors import InfeasibleError, OptionError, ProblemError
from bilevel.problems.transport import (
    TransportNetwork,
    assess,
    nine_node,
    random_network,
    seville,
    three_node,
)
from bilevel.problems.transport.limits import PlanLimits
from bilevel.problems.transport.tolls import toll_plan, toll_profit
from bilevel.problems.transport.tolls_links import link_candidates
from bilevel.problems.transport.tolls_routes import cheapest_routes
from bilevel.problems.transport.tolls_routing import routing_model
from bilevel.problems.transport.tolls_search import polish_tolls

OPTIMUM = 2 * expit(2.0)
seeds = st.integers(0, 10_000)


def tolls(network: TransportNetwork, seed: int, scale: float = 1.0) -> np.ndarray:
    """Random tolls, some zero and some infinite."""
    random = np.random.default_rng(seed)
    toll = scale * random.random(len(network.tail))
    toll[random.random(len(toll)) < 0.3] = 0.0
    toll[random.random(len(toll)) < 0.2] = np.inf
    return toll


def shortest(network: TransportNetwork, toll: np.ndarray) -> np.ndarray:
    built = np.isfinite(toll)
    size = len(network.nodes)
    price = (network.travel_cost + toll)[built]
    graph = csr_array((price, (network.tail[built], network.head[built])), shape=(size, size))
    return dijkstra(graph)[network.origin, network.destination]


class TestRoutes:
    @given(seed=seeds)
    @settings(max_examples=20)
    def test_they_are_those_of_all_simple_paths(self, seed: int) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        routes = cheapest_routes(network, toll)
        taken, first = routes.walk(network)
        graph = networkx.DiGraph()
        for link in np.flatnonzero(np.isfinite(toll)):
            price = network.travel_cost[link] + toll[link]
            graph.add_edge(network.tail[link], network.head[link], price=price, link=link)
        for o in range(9):
            for t in range(9):
                paths = (
                    list(networkx.all_simple_edge_paths(graph, o, t))
                    if o != t and o in graph and t in graph
                    else []
                )
                if not paths:
                    assert routes.last[o, t] == first[o, t] == -1
                    assert routes.price[o, t] == (0.0 if o == t else np.inf)
                    continue
                links = [[graph.edges[edge]["link"] for edge in path] for path in paths]
                prices = [sum(graph.edges[edge]["price"] for edge in path) for path in paths]
                used = np.flatnonzero(taken[o, t])
                assert routes.price[o, t] == pytest.approx(min(prices), abs=1e-6)
                assert sorted(used) in [
                    sorted(path) for path, price in zip(links, prices, strict=True)
                    if price <= min(prices) + 1e-5
                ]  # fmt: skip
                assert routes.cost[o, t] == pytest.approx(network.construction_cost[used].sum())
                assert routes.price[o, t] == pytest.approx(
                    (network.travel_cost + np.where(np.isfinite(toll), toll, 0.0))[used].sum(),
                    abs=1e-9,
                )
                assert network.tail[first[o, t]] == o
                assert network.head[routes.last[o, t]] == t

    @given(seed=seeds, link=st.integers(0, 29))
    @settings(max_examples=30)
    def test_without_a_link_they_are_those_at_an_infinite_toll(self, seed: int, link: int) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        found = cheapest_routes(network, toll).without(network, toll, link)
        toll[link] = np.inf
        for one, other in zip(found, cheapest_routes(network, toll), strict=True):
            np.testing.assert_array_equal(one, other)


class TestProfit:
    def test_the_known_optimum_of_three_nodes_is_the_profit_of_its_tolls(self) -> None:
        network = three_node()
        toll = np.array([0.0, 0.0, np.inf, np.inf, np.inf, np.inf])
        plan = toll_plan(network, toll)
        assert plan.profit == pytest.approx(OPTIMUM, abs=1e-12)
        np.testing.assert_allclose(plan.load, [expit(2.0), expit(2.0), 0, 0, 0, 0], atol=1e-12)

    @given(seed=seeds)
    @settings(max_examples=20)
    def test_shares_answer_the_prices_of_shortest_routes(self, seed: int) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        plan = toll_plan(network, toll)
        share = expit(network.alternative_cost - shortest(network, toll))
        np.testing.assert_allclose(plan.share, share, atol=1e-6)

    @given(seed=seeds)
    @settings(max_examples=20)
    def test_the_loads_carry_the_shares_at_the_plans_profit(self, seed: int) -> None:
        network = nine_node()
        plan = toll_plan(network, tolls(network, seed))
        served = network.demand * plan.share
        balance = np.zeros(len(network.nodes))
        np.add.at(balance, network.tail, plan.load)
        np.add.at(balance, network.head, -plan.load)
        np.add.at(balance, network.origin, -served)
        np.add.at(balance, network.destination, served)
        np.testing.assert_allclose(balance, 0.0, atol=1e-12)
        assert plan.profit == pytest.approx(toll_profit(network, plan.toll), abs=1e-10)

    @pytest.mark.parametrize("seed", range(3))
    def test_the_exact_lower_level_at_the_loads_reproduces_the_profit(self, seed: int) -> None:
        network = nine_node()
        plan = toll_plan(network, tolls(network, seed))
        assessment = assess(network, plan.load)
        assert assessment.profit == pytest.approx(plan.profit, abs=1e-3)
        np.testing.assert_allclose(assessment.share, plan.share, atol=1e-5)

    def test_of_routes_that_tie_the_cheapest_to_construct_counts(self) -> None:
        network = three_node()  # 1 → 3 directly: d = c = 10; by way of 2: d = 3, c = 4.
        toll = np.zeros(6)
        toll[(network.tail == 0) & (network.head == 1)] = 7.0
        pair = (network.origin == 0) & (network.destination == 2)
        direct = (network.tail == 0) & (network.head == 2)
        assert toll_plan(network, toll).load[direct] == 0.0
        toll += np.where(toll > 0, 1e-4, 0.0)
        plan = toll_plan(network, toll)
        np.testing.assert_allclose(plan.load[direct], plan.share[pair], atol=1e-12)

    @pytest.mark.parametrize(
        ("toll", "message"),
        [
            (np.zeros(5), "shape"),
            (np.full(6, -1.0), "-1"),
            (np.full(6, np.nan), "nan"),
            ("abc", "one number for each of 6"),
        ],
    )
    def test_tolls_that_make_no_sense_are_refused(self, toll: np.ndarray, message: str) -> None:
        with pytest.raises(ProblemError, match=message):
            toll_profit(three_node(), toll)


class TestOneLink:
    @given(seed=seeds, link=st.integers(0, 29))
    @settings(max_examples=30)
    def test_profits_of_the_candidates_are_exact(self, seed: int, link: int) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        routes = cheapest_routes(network, toll)
        candidates, profits = link_candidates(network, toll, link, routes)
        for candidate, profit in list(zip(candidates, profits, strict=True))[::5]:
            toll[link] = candidate
            assert toll_profit(network, toll) == pytest.approx(profit, abs=1e-5)

    @given(seed=seeds, link=st.integers(0, 29))
    @settings(max_examples=20)
    def test_no_toll_on_a_fine_grid_beats_the_candidates(self, seed: int, link: int) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        best = link_candidates(network, toll, link, cheapest_routes(network, toll))[1].max()
        for candidate in np.linspace(0.0, 6.0, 101):
            toll[link] = candidate
            assert toll_profit(network, toll) <= best + 1e-2


class TestAllLinks:
    @given(seed=seeds)
    @settings(max_examples=20)
    def test_the_gradient_is_that_of_the_profit_where_routes_do_not_change(self, seed: int) -> None:
        network = nine_node()
        toll = 0.1 + np.random.default_rng(seed).random(30)
        gradient = routing_model(network, toll, 1.0).gradient
        change = 1e-6 * np.random.default_rng(seed + 1).standard_normal(30)
        difference = toll_profit(network, toll + change) - toll_profit(network, toll - change)
        assert difference / 2 == pytest.approx(gradient @ change, abs=1e-9)

    @given(seed=seeds)
    @settings(max_examples=20)
    def test_a_step_within_the_constraints_keeps_pairs_from_costlier_routes(
        self, seed: int
    ) -> None:
        network = nine_node()
        toll = tolls(network, seed)
        model = routing_model(network, toll, 0.4)
        step = model.step(toll, 0.02)
        assert step is not None
        assert np.all(model.detours @ step <= model.slack + 1e-9)
        moved = np.maximum(toll + step, 0.0)
        gain = toll_profit(network, moved) - toll_profit(network, toll)
        predicted = float(model.gradient @ step)
        # Nothing is lost by a jump: curvature alone separates the gain from its prediction.
        assert gain >= 0.8 * predicted - 0.05 * 0.02


class TestPolish:
    @pytest.mark.parametrize("start", [0.0, 1.0, 5.0])
    def test_three_nodes_reach_the_optimum_from_any_of_these_starts(self, start: float) -> None:
        polish = polish_tolls(three_node(), np.full(6, start), rounds=3)
        assert polish.plan.profit == pytest.approx(OPTIMUM, abs=1e-6)
        assert np.isinf(polish.plan.toll).sum() == 4

    def test_nine_nodes_reach_the_best_profit_known(self) -> None:
        network = nine_node()
        polish = polish_tolls(network, np.zeros(30), rounds=3)
        assert polish.plan.profit >= 17.2845
        assert assess(network, polish.plan.load).profit == pytest.approx(
            polish.plan.profit, rel=1e-4
        )

    @pytest.mark.real_data
    def test_seville_reaches_the_best_profit_known(self) -> None:
        polish = polish_tolls(seville(), np.zeros(88), rounds=1)
        assert polish.plan.profit >= 226.42

    @given(seed=seeds)
    @settings(max_examples=5)
    def test_the_plan_is_never_worse_than_the_start_and_its_routes_do_not_tie(
        self, seed: int
    ) -> None:
        network = random_network(6, seed=seed)
        polish = polish_tolls(network, tolls(network, seed), rounds=1, seed=seed)
        assert polish.plan.profit >= polish.start_profit - 1e-4
        assert list(polish.profits) == sorted(polish.profits)
        plain = expit(network.alternative_cost - shortest(network, polish.plan.toll))
        np.testing.assert_allclose(polish.plan.share, plain, atol=1e-12)
        assert np.all(np.isinf(polish.plan.toll) == (polish.plan.load == 0))

    def test_the_same_seed_gives_the_same_plan(self) -> None:
        network = nine_node()
        first, second = (polish_tolls(network, np.ones(30), rounds=1, seed=3) for _ in range(2))
        np.testing.assert_array_equal(first.plan.toll, second.plan.toll)
        assert first.profits == second.profits

    def test_limits_bind_and_are_respected(self) -> None:
        network = three_node()
        unlimited = polish_tolls(network, np.zeros(6), rounds=1).plan
        limits = PlanLimits(budget=1.0)
        plan = polish_tolls(network, unlimited.toll, rounds=3, limits=limits).plan
        assert plan.construction_cost <= 1.0 + 1e-8
        assert 0.95 <= plan.profit < unlimited.profit  # Of each link 2 - c = 1 is earned per cost.
        limits = PlanLimits(ceiling=0.5)
        plan = polish_tolls(network, unlimited.toll, rounds=3, limits=limits).plan
        assert plan.load.max() <= 0.5 + 1e-8
        assert plan.profit == pytest.approx(1.0, abs=0.05)

    def test_limits_that_it_cannot_meet_are_named(self) -> None:
        network, start = nine_node(), np.zeros(30)
        with pytest.raises(InfeasibleError, match="least_share and ceiling"):
            polish_tolls(network, start, limits=PlanLimits(ceiling=1e-2, least_share=0.1))
        limits = PlanLimits(ceiling=1.2, least_share=0.1)
        with pytest.raises(ProblemError, match="no plan within the limits"):
            polish_tolls(network, start, rounds=0, seconds=0.5, limits=limits)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rounds": -1}, "rounds=-1"),
            ({"rounds": 1.5}, "rounds=1.5"),
            ({"seconds": 0.0}, "seconds=0.0"),
            ({"seconds": np.nan}, "seconds=nan"),
        ],
    )
    def test_options_out_of_range_are_refused(
        self, options: dict[str, float], message: str
    ) -> None:
        with pytest.raises(OptionError, match=message):
            polish_tolls(three_node(), np.zeros(6), **options)  # type: ignore[arg-type]
