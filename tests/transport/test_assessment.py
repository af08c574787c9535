"""The exact check of a plan: certified, independent, and right where the answer is known."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.special import expit

from bilevel.errors import ProblemError, ResponseError
from bilevel.problems.transport import (
    TransportNetwork,
    assess,
    exact,
    nine_node,
    random_network,
    seville,
    seville_start,
    three_node,
)

SIGMA = float(expit(2.0))


def test_three_node_optimum() -> None:
    plan = assess(three_node(), [SIGMA, SIGMA, 0, 0, 0, 0])
    assert plan.profit == pytest.approx(2 * SIGMA, abs=2e-6)
    assert plan.revenue == pytest.approx(4 * SIGMA, abs=2e-6)
    assert plan.construction_cost == 2 * SIGMA
    np.testing.assert_allclose(plan.share, [SIGMA, SIGMA, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(np.isinf(plan.toll), [False, False, True, True, True, True])
    assert plan.share_served == pytest.approx(SIGMA / 3, abs=1e-6)
    # ln f − f + … of the two pairs at S = 1; the other four pay u = 3.
    expected = 2 * (-np.log(np.exp(-3) + np.exp(-1)) - 1) + 4 * (3 - 1)
    assert plan.lower_value == pytest.approx(expected, abs=1e-9)


def test_the_published_plan_of_the_three_node_network_has_its_known_profit() -> None:
    capacity = np.full(6, 0.001)
    capacity[:2] = 0.9083
    assert assess(three_node(), capacity).profit == pytest.approx(1.6936, abs=1e-4)


def test_a_single_link_has_a_closed_form() -> None:
    links = pd.DataFrame({"i": [0], "j": [1], "d": [1.0], "c": [0.5]})
    pairs = pd.DataFrame({"o": [0], "dest": [1], "w": [4.0], "u": [2.5], "m": [3.0]})
    network = TransportNetwork(links, pairs)
    scarce = assess(network, [1.0])
    assert scarce.share[0] == pytest.approx(0.25, abs=1e-9)
    assert scarce.toll[0] == pytest.approx(2.5 - 1 - np.log(0.25 / 0.75), abs=1e-7)
    assert scarce.profit == pytest.approx(4 * 3 * 0.25 - 0.5, abs=1e-8)
    ample = assess(network, [5.0])
    assert ample.share[0] == pytest.approx(expit(1.5), abs=1e-9)
    assert ample.toll[0] == pytest.approx(0, abs=1e-9)
    assert ample.unused_capacity == pytest.approx(5 - 4 * expit(1.5), abs=1e-8)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), nodes=st.integers(3, 8), level=st.floats(0.01, 30))
def test_the_answer_satisfies_the_travellers_optimality_conditions(
    seed: int, nodes: int, level: float
) -> None:
    network = random_network(nodes, seed=seed)
    random = np.random.default_rng(seed)
    capacity = level * random.random(len(network.links))
    capacity[random.random(len(capacity)) < 0.3] = 0.0
    plan = assess(network, capacity)
    assert plan.gap <= 1e-7
    assert (plan.load <= capacity + 1e-6).all()
    built = capacity > 0
    length = (network.travel_cost + plan.toll)[built]
    graph = csr_array((length, (network.tail[built], network.head[built])), shape=(nodes, nodes))
    shortest = dijkstra(graph)[network.origin, network.destination]
    logit = expit(network.alternative_cost - shortest)
    np.testing.assert_allclose(plan.share, logit, atol=1e-4)
    slack = plan.toll[built] * (capacity - plan.load)[built]
    np.testing.assert_allclose(slack, 0, atol=1e-5 * network.demand.sum())


def test_the_tolls_are_minus_the_gradient_of_the_travellers_value() -> None:
    network = nine_node()
    capacity = np.random.default_rng(0).uniform(0.5, 3.0, len(network.links))
    toll = assess(network, capacity).toll
    h = 1e-4
    for link in (0, 7, 29):
        value = []
        for sign in (1, -1):
            moved = capacity.copy()
            moved[link] += sign * h
            value.append(assess(network, moved).lower_value)
        assert (value[0] - value[1]) / (2 * h) == pytest.approx(-toll[link], abs=1e-5)
    assert toll.max() > 0.1


@pytest.mark.parametrize("level", [0.5, 3.0, 1e4])
def test_trimming_changes_neither_the_shares_nor_the_promised_profit(level: float) -> None:
    network = nine_node()
    plan = assess(network, np.full(30, level))
    trimmed = assess(network, plan.trimmed_capacity)
    assert trimmed.profit == pytest.approx(plan.trimmed_profit, abs=1e-3)
    np.testing.assert_allclose(trimmed.share, plan.share, atol=2e-5)
    assert plan.trimmed_profit >= plan.profit
    assert plan.unused_capacity == pytest.approx(plan.capacity.sum() - plan.trimmed_capacity.sum())
    assert trimmed.unused_capacity < 1e-3
    assert abs(trimmed.profit - plan.trimmed_profit) <= plan.profit_error + trimmed.profit_error


def test_nothing_built_serves_no_one() -> None:
    network = three_node()
    plan = assess(network, np.zeros(6))
    assert (plan.profit, plan.share_served, plan.gap) == (0, 0, 0)
    assert np.isinf(plan.toll).all()
    assert plan.lower_value == 6 * (3 - 1)


def test_pairs_that_the_plan_does_not_connect_have_no_share() -> None:
    network = nine_node()
    capacity = np.where(network.tail < network.head, 2.0, 0.0)
    plan = assess(network, capacity)
    backward = network.origin > network.destination
    assert (plan.share[backward] == 0).all()
    assert (plan.share[~backward] > 0).any()


def test_links_without_travel_cost_are_links() -> None:
    network = three_node()
    free = TransportNetwork(network.links.assign(d=0.0), network.pairs)
    np.testing.assert_allclose(assess(free, np.full(6, 9.0)).share, expit(3.0), atol=1e-8)


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_the_unit_of_demand_does_not_matter(scale: float) -> None:
    network = nine_node()
    scaled = TransportNetwork(network.links, network.pairs.assign(w=scale * network.pairs["w"]))
    plan, other = assess(network, np.full(30, 2.0)), assess(scaled, np.full(30, 2.0 * scale))
    np.testing.assert_allclose(other.share, plan.share, atol=1e-6)
    np.testing.assert_allclose(other.toll, plan.toll, atol=1e-6)


def test_a_plan_is_a_table_and_a_graph() -> None:
    plan = assess(three_node(), [1.0, 1.0, 0, 0, 0, 0])
    assert list(plan.plan.columns) == ["i", "j", "capacity", "flow", "toll"]
    assert plan.plan["capacity"].tolist() == [1, 1, 0, 0, 0, 0]
    graph = plan.to_graph()
    assert sorted(graph.edges) == [(1, 2), (2, 1)]
    assert graph.edges[1, 2]["flow"] == pytest.approx(SIGMA, abs=1e-6)
    assert graph.edges[1, 2]["construction_cost"] == 1.0
    assert "capacity" in "".join(nx.generate_graphml(graph))
    assert "profit=1.52" in repr(plan)


def test_capacities_are_checked() -> None:
    network = three_node()
    with pytest.raises(ProblemError, match=r"shape \(3,\), expected one number for each of 6"):
        assess(network, [1.0, 1.0, 1.0])
    for strange in ("abc", ["1", "two", "3", "4", "5", "6"], [1j] * 6, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ProblemError, match=r"capacity=.*expected one number for each of 6"):
            assess(network, strange)
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ProblemError, match=f"capacity of link 2 → 1 is {value}"):
            assess(network, [1.0, value, 1.0, 1.0, 1.0, 1.0])


def test_an_answer_that_is_not_certified_is_sought_by_shorter_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, solve = [], exact._solve

    def failing(*args: Any) -> Any:
        steps.append(args[-1])
        if len(steps) < 3:
            raise ResponseError("stalled")
        return solve(*args)

    expected = assess(nine_node(), np.full(30, 2.0))
    monkeypatch.setattr(exact, "_solve", failing)
    found = assess(nine_node(), np.full(30, 2.0))
    assert steps == [0.9, 0.8, 0.7]
    assert found.profit == pytest.approx(expected.profit, rel=1e-6)
    assert found.gap <= 1e-7


def test_an_answer_that_cannot_be_certified_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_CLARABEL", {"max_iter": 4})
    with pytest.raises(ResponseError):
        assess(nine_node(), np.full(30, 2.0))


@pytest.mark.real_data
def test_sevilles_published_start() -> None:
    network = seville()
    plan = assess(network, seville_start(network))
    assert plan.profit == pytest.approx(-802.168, abs=2e-3)
    assert plan.gap < 1e-9
    assert plan.profit_error < 0.02
