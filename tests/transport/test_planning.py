"""Plans: optima that are known, limits that are kept, profits that are confirmed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from bilevel import BLOCC
from bilevel.callbacks import Callback, Record
from bilevel.errors import (
    CheckpointError,
    InfeasibleError,
    NotApplicableError,
    OptionError,
    ProblemError,
    ResponseError,
)
from bilevel.problems.transport import (
    Passengers,
    Plan,
    PlanLimits,
    TransportNetwork,
    TrueProfit,
    assess,
    nine_node,
    plan_network,
    polish_tolls,
    random_network,
    seville,
    seville_start,
    stages,
    three_node,
    toll_plan,
    toll_profit,
    transport_problem,
    transport_start,
)
from bilevel.state import State


def test_three_nodes_reach_the_optimum() -> None:
    plan = plan_network(three_node(), steps=40)
    assert plan.assessment.profit == pytest.approx(2 * expit(2.0), abs=1e-5)
    np.testing.assert_allclose(plan.assessment.capacity, expit(2.0) * np.array([1, 1, 0, 0, 0, 0]),
                               atol=1e-3)  # fmt: skip
    # What BLOCC itself falls short by is its last penalty, and the floor on links that are idle.
    assert plan.blocc.profit == pytest.approx(2 * expit(2.0), abs=1e-3)


@pytest.fixture(scope="module")
def nine() -> Plan:
    network = nine_node()
    return plan_network(
        network, steps=60, first_penalties=(0.3,), callbacks=[TrueProfit(network, every=20)]
    )


def test_nine_nodes_without_the_polish(nine: Plan) -> None:
    assert nine.blocc.profit >= 16.9
    assert nine.assessment.profit >= 17.25
    assert nine.violation == 0.0


def test_a_plan_has_its_stages(nine: Plan) -> None:
    assert nine.trimmed is nine.assessment
    assert nine.polished is None
    assert nine.search is None
    assert list(nine.stages.index) == ["BLOCC", "trimmed"]
    assert list(nine.stages["profit"]) == [nine.blocc.profit, nine.trimmed.profit]
    assert list(nine.stages["violation"]) == [0.0, 0.0]


def test_the_best_run_is_kept() -> None:
    plan = plan_network(nine_node(), steps=15, first_penalties=(1.0, 0.3), trim=False)
    assert list(plan.runs["first_penalty"]) == [1.0, 0.3]
    assert plan.runs["profit"].nunique() == 2
    assert plan.runs["profit"].max() == plan.blocc.profit == plan.assessment.profit
    assert plan.trimmed is None


def test_the_true_profit_of_a_run_is_that_of_the_exact_check() -> None:
    network, seen = three_node(), []

    def note(record: dict[str, float], state: State) -> None:
        seen.append(assess(network, state.x.numpy()).profit)

    callbacks = [TrueProfit(network, every=2), note]
    plan = plan_network(network, steps=9, first_penalties=(1.0,), callbacks=callbacks)
    found = plan.solution.history["true_profit"]
    np.testing.assert_array_equal(found.isna(), [False, True] * 4 + [False])
    np.testing.assert_allclose(found[::2], seen[::2], atol=1e-5)
    assert (found[::2] < -plan.solution.history["upper"][::2]).all()


def test_the_true_profit_approaches_the_planned_one(nine: Plan) -> None:
    history = nine.solution.history.dropna()
    hope = -history["upper"] - history["true_profit"]
    assert len(hope) == 2
    assert hope.iloc[0] > 1.0
    assert 0.0 < hope.iloc[-1] < 0.2


def test_a_polished_plan_has_its_search() -> None:
    plan = plan_network(nine_node(), steps=25, first_penalties=(0.3,), polish=1)
    assert plan.polished is plan.assessment
    assert plan.search is not None
    assert plan.search.plan.profit == pytest.approx(plan.polished.profit, rel=1e-5)
    assert plan.polished.profit >= plan.trimmed.profit


def test_a_profit_is_that_of_the_exact_check(nine: Plan) -> None:
    again = assess(nine_node(), nine.assessment.capacity)
    assert nine.assessment.profit == pytest.approx(again.profit, rel=1e-9)
    f = nine.solution.upper_value
    assert nine.blocc.profit == pytest.approx(-f, rel=1e-2)
    assert 0.0 <= nine.solution.lower_gap < 1e-3


def test_the_polish_reaches_the_best_known(nine: Plan) -> None:
    found = polish_tolls(nine_node(), nine.assessment.toll, rounds=3, seed=0)
    assert assess(nine_node(), found.plan.load).profit >= 17.2845


@pytest.mark.parametrize(
    "limits",
    [
        PlanLimits(budget=50.0),
        PlanLimits(ceiling=5.0),
        PlanLimits(least_share=0.05),
        PlanLimits(budget=60.0, ceiling=6.0, least_share=0.02),
    ],
    ids=["budget", "ceiling", "least share", "all"],
)
def test_limits_are_kept_and_cost_profit(limits: PlanLimits, nine: Plan) -> None:
    network = nine_node()
    plan = plan_network(network, limits, steps=25, first_penalties=(0.3,))
    capacity, exact = plan.assessment.capacity, assess(network, plan.assessment.capacity)
    assert plan.violation <= 1e-6
    if limits.budget is not None:
        assert network.construction_cost @ capacity <= limits.budget * (1 + 1e-9)
    if limits.ceiling is not None:
        assert capacity.max() <= limits.ceiling + 1e-9
    if limits.least_share is not None:
        assert exact.share.min() >= limits.least_share - 1e-5
    assert 0.0 < plan.assessment.profit < nine.assessment.profit


def test_a_least_share_of_one_pair_is_served() -> None:
    network = nine_node()
    least = np.zeros(72)
    least[5] = 0.2
    plan = plan_network(network, PlanLimits(least_share=least), steps=25, first_penalties=(0.3,))
    assert assess(network, plan.assessment.capacity).share[5] >= 0.2 - 1e-5


def test_unattainable_shares_name_their_pair() -> None:
    with pytest.raises(ProblemError, match=r"from 1 to 3 .* 0\.5 would travel by the network"):
        plan_network(three_node(), PlanLimits(least_share=[0, 0, 0.6, 0, 0, 0]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"budget": -1.0}, "budget=-1.0"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"floor": 0.0}, "floor=0.0"),
        ({"ceiling": "wide"}, "ceiling='wide'"),
        ({"least_share": [0.1, float("nan")]}, "least_share="),
    ],
)
def test_limits_out_of_range_are_named(limits: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PlanLimits(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "begin",
    [
        plan_network,
        transport_problem,
        transport_start,
        Passengers,
        TrueProfit,
        seville_start,
        lambda graph: assess(graph, 1.0),
        lambda graph: polish_tolls(graph, 1.0),
        lambda graph: toll_plan(graph, 1.0),
        lambda graph: toll_profit(graph, 1.0),
    ],
)
def test_a_graph_that_was_not_made_into_a_network_is_named(begin: Callable[[Any], object]) -> None:
    with pytest.raises(ProblemError, match=r"network: found DiGraph, expected a TransportNetwork"):
        begin(networkx.DiGraph())


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        (PlanLimits(ceiling=[1.0, 2.0]), OptionError, "ceiling has 2 entries for 6 links"),
        (PlanLimits(ceiling=1e-5), ProblemError, "ceiling: the smallest is 1e-05"),
        (PlanLimits(budget=1e-4), ProblemError, "budget=0.0001 does not pay for the floor"),
        (PlanLimits(least_share=1.5), OptionError, "least_share: found 1.5"),
    ],
)
def test_limits_that_do_not_fit_the_network(
    limits: PlanLimits, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_network(three_node(), limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        # The direct link costs 1; a detour doubles what can be carried.
        (
            {"budget": 0.29},
            "least_share and budget: .* cost 0.30026 at the least, and",
        ),
        ({"ceiling": 0.149}, "least_share and ceiling: no capacities up to the ceilings"),
        ({"budget": 0.3, "ceiling": 9.0}, "cost 0.30026 at the least.* or the ceilings"),
    ],
)
def test_limits_that_contradict_each_other_are_named(
    limits: dict[str, float], message: str
) -> None:
    network = three_node()
    share = np.zeros(6)
    share[0] = 0.3
    with pytest.raises(InfeasibleError, match=message):
        plan_network(network, PlanLimits(**limits, least_share=share))


def test_limits_with_a_little_room_between_them_are_kept() -> None:
    share = np.zeros(6)
    share[0] = 0.3
    limits = PlanLimits(budget=0.303, ceiling=0.302, least_share=share)
    plan = plan_network(three_node(), limits, steps=10, first_penalties=(1.0,))
    assert plan.violation <= 1e-6
    assert plan.assessment.share[0] == pytest.approx(0.301, abs=2e-3)


def test_where_passengers_do_not_serve_a_planner_the_violation_says_so() -> None:
    # Capacities for the least shares cost 21.2 at the least; routes that passengers choose, more.
    limits = PlanLimits(budget=23.0, least_share=0.05)
    plan = plan_network(nine_node(), limits, steps=25, first_penalties=(0.3,))
    missing = np.max(0.05 - plan.assessment.share)
    assert missing > 1e-3
    assert plan.violation == pytest.approx(missing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"polish": -1}, "polish=-1"),
        ({"first_penalties": ()}, r"first_penalties=\(\), expected one penalty or more"),
        ({"first_penalties": 3.0}, "first_penalties=3.0, expected one penalty or more"),
        ({"first_penalties": (0.0,)}, "first_penalties=0.0"),
        ({"first_penalties": (150.0,)}, r"first_penalties: found 150, .* less than the last, 150"),
        (
            {"first_penalties": (1e-9,)},
            "first_penalties: found 1e-09, expected numbers of at least",
        ),
        ({"limits": 3.0}, r"limits=3.0, expected PlanLimits"),
        ({"callbacks": print}, r"callbacks=.*callbacks=\[\.\.\.\]"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_network(three_node(), **options)  # type: ignore[arg-type]


def test_an_interrupted_plan_goes_on_where_it_stopped(tmp_path: Path) -> None:
    network = nine_node()

    def plan(folder: Path, *, steps: int = 24, **options: Any) -> Plan:
        return plan_network(
            network, steps=steps, first_penalties=(0.3,), trim=False, checkpoints=folder, **options
        )

    class Kill(Callback):
        def on_step(self, run: Any) -> None:
            if run.state.step == 15:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(tmp_path / "killed", callbacks=[Kill()])
    steps: list[int] = []
    resumed = plan(
        tmp_path / "killed", resume=True, callbacks=[lambda record, _: steps.append(record["step"])]
    )
    assert min(steps) == 11  # the last checkpoint was that of step 10
    whole = plan(tmp_path / "whole")
    np.testing.assert_array_equal(resumed.blocc.capacity, whole.blocc.capacity)
    assert list(resumed.solution.history["step"]) == list(whole.solution.history["step"])
    with pytest.raises(CheckpointError, match="begun with steps=24, and this one has 30"):
        plan(tmp_path / "whole", steps=30, resume=True)
    with pytest.raises(CheckpointError, match="begun with network, limits and start="):
        plan(tmp_path / "whole", limits=PlanLimits(ceiling=9.0), resume=True)
    with pytest.raises(CheckpointError, match="begun with network, limits and start="):
        plan(tmp_path / "whole", start=0.9, resume=True)
    with pytest.raises(OptionError, match="there are no runs in"):
        plan(tmp_path / "none", resume=True)


def test_other_networks_gain_from_a_plan() -> None:
    network = random_network(10, seed=4)
    plan = plan_network(network, steps=25, first_penalties=(0.3,))
    assert plan.assessment.profit >= plan.blocc.profit > 0.0


@pytest.mark.real_data
@pytest.mark.slow
def test_seville_without_the_polish() -> None:
    plan = plan_network(seville())
    assert plan.blocc.profit >= 205.0
    exact = assess(seville(), plan.blocc.capacity)
    assert exact.profit == pytest.approx(plan.blocc.profit, rel=1e-6)


def test_saved_runs_are_gone_on_with_only_where_that_is_asked_for(tmp_path: Path) -> None:
    options = {"first_penalties": (1.0, 0.3), "trim": False, "checkpoints": tmp_path}
    plan_network(three_node(), steps=12, **options)
    assert len(list(tmp_path.glob("blocc-*.pt"))) == 2
    resumed = plan_network(three_node(), steps=12, resume=True, **options)
    assert resumed.solution.steps == 12

    def stop(record: Record, state: State) -> None:
        raise KeyboardInterrupt

    # A new call that is cut short leaves nothing of the old one to be taken for its own.
    with pytest.raises(KeyboardInterrupt):
        plan_network(three_node(), steps=12, callbacks=[stop], **options)
    assert not list(tmp_path.glob("blocc-*.pt"))
    with pytest.raises(OptionError, match="give checkpoints="):
        plan_network(three_node(), resume=True)


@pytest.mark.parametrize("money", [1e-4, 1e4])
@pytest.mark.parametrize("passengers", [1e-2, 1e3])
def test_units_of_money_and_demand_change_no_plan(money: float, passengers: float) -> None:
    network = nine_node()
    other = TransportNetwork(
        network.links.assign(c=money * network.construction_cost),
        network.pairs.assign(m=money * network.fare, w=passengers * network.demand),
    )
    options = {"steps": 25, "first_penalties": (0.1,), "polish": 2}
    expected, found = (plan_network(each, **options) for each in (network, other))
    profits = [plan.stages["profit"].to_numpy() for plan in (expected, found)]
    np.testing.assert_allclose(profits[1][:2], money * passengers * profits[0][:2], rtol=1e-4)
    # The search compares profits that differ by rounding.
    assert profits[1][2] == pytest.approx(money * passengers * profits[0][2], rel=5e-3)


def test_limits_that_bind_nowhere_change_no_plan() -> None:
    network = nine_node()
    limits = PlanLimits(budget=1e9, ceiling=1e6, least_share=0.0)
    start = np.full(30, 0.3)
    free, limited = (polish_tolls(network, start, rounds=2, limits=each) for each in (None, limits))
    assert limited.plan.profit == pytest.approx(free.plan.profit, rel=1e-9)


def test_a_floor_of_the_planners_own_costs_no_link_that_carries_more() -> None:
    network = nine_node()
    bounds = PlanLimits(floor=1.0).of(network)
    capacity = np.full(30, 1.0)
    capacity[:2] = 1.001, 1.9
    np.testing.assert_array_equal(bounds.built(capacity), np.where(capacity > 1, capacity, 0.0))
    plan = plan_network(network, PlanLimits(floor=1.0), steps=20, first_penalties=(0.1,))
    assert ((plan.blocc.capacity > 1.0) | (plan.blocc.capacity == 0.0)).all()
    assert ((plan.blocc.capacity > 1.0) & (plan.blocc.capacity < 2.0)).any()


def test_profits_are_certified_to_a_thousandth(nine: Plan) -> None:
    for plan in (
        nine,
        plan_network(three_node(), steps=30),
        plan_network(random_network(12, seed=0)),
    ):
        for stage in (plan.blocc, plan.trimmed):
            assert stage is not None
            assert stage.profit_error <= 1e-3 * stage.profit


def test_a_run_that_goes_on_with_larger_shares_counts_all_of_it() -> None:
    limits = PlanLimits(budget=60.0, ceiling=6.0, least_share=0.02)
    plan = plan_network(nine_node(), limits, steps=25, first_penalties=(0.1,))
    assert plan.runs["repeats"].item() >= 1
    history = plan.solution.history
    for column in ("step", "seconds", "gradient_evaluations"):
        assert history[column].is_monotonic_increasing
    assert plan.solution.steps == history["step"].iloc[-1] > 25
    assert plan.solution.gradient_evaluations >= history["gradient_evaluations"].iloc[-1]
    assert plan.solution.seconds >= history["seconds"].iloc[-1]


def test_of_the_repeats_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    violations = iter([0.1, 0.02, 0.05, *[0.06] * 20])
    real, asked = stages.assess, []

    def pretending(network: TransportNetwork, capacity: np.ndarray) -> Any:
        found = real(network, capacity)
        share = np.full(6, 0.5 - next(violations))
        asked.append(capacity)
        return dataclasses.replace(found, share=share)

    monkeypatch.setattr(stages, "assess", pretending)
    network = TransportNetwork(three_node().links, three_node().pairs.assign(u=20.0))
    plan = plan_network(
        network, PlanLimits(least_share=0.5), steps=8, first_penalties=(0.1,), trim=False
    )
    assert plan.violation == pytest.approx(0.02)
    np.testing.assert_array_equal(plan.blocc.capacity, asked[1])
    assert plan.runs["repeats"].item() >= 2
    assert plan.solution.steps == plan.solution.history["step"].iloc[-1] > 8


def test_a_trimmed_plan_that_cannot_be_assessed_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = stages.assess, []

    def failing(network: TransportNetwork, capacity: np.ndarray) -> Any:
        calls.append(capacity)
        if len(calls) > 1:
            raise ResponseError("not certified")
        return real(network, capacity)

    monkeypatch.setattr(stages, "assess", failing)
    with pytest.warns(UserWarning, match="a plan was left out: not certified"):
        plan = plan_network(three_node(), steps=10, first_penalties=(0.1,))
    assert plan.assessment is plan.blocc


def test_where_nothing_pays_nothing_is_built() -> None:
    network = TransportNetwork(three_node().links, three_node().pairs.assign(m=0.0))
    plan = plan_network(network, steps=10, polish=1)
    assert not plan.assessment.capacity.any()
    assert plan.assessment.profit == 0.0


def test_first_order_steps_refuse_least_shares() -> None:
    problem = transport_problem(three_node(), PlanLimits(least_share=0.1))
    with pytest.raises(NotApplicableError, match="DifferenceOfConvex"):
        BLOCC(penalty=3.0, upper_lr=0.1).solve(problem, *transport_start(three_node()), max_steps=3)


@pytest.mark.parametrize("start", [-1.0, np.nan, [1.0, 2.0], "wide"])
def test_a_start_that_makes_no_sense_is_named(start: Any) -> None:
    with pytest.raises(ProblemError, match="capacity"):
        plan_network(three_node(), start=start)


def test_a_network_of_24_nodes_need_not_be_sevilles() -> None:
    with pytest.raises(ProblemError, match="is not the network of seville"):
        seville_start(random_network(24, seed=0))


INF = np.inf


@pytest.mark.parametrize(
    ("links", "pairs", "limits"),
    [
        # The least share needs more than the ceiling of the only route that is shortest by itself.
        (
            [(0, 3, 1, 1), (1, 2, 1, 1), (1, 3, 1, 1), (2, 0, 1, 1)],
            [(1, 3, 2.0, 3.0, 0.5)],
            PlanLimits(ceiling=[INF, INF, 0.3, INF], least_share=0.2),
        ),
        # Several tolls along a single route: only their sum is determined.
        (
            [(0, 2, 1, 1), (1, 4, 1, 1), (2, 1, 1, 1), (2, 3, 1, 1), (3, 4, 1, 1), (4, 1, 1, 1)],
            [(0, 4, 1.0, 1.74, 1.0), (4, 1, 1.0, 5.34, 1.0), (2, 4, 1.0, 3.737, 1.0)],
            None,
        ),
        (
            [(1, 0, 0.6, 0.8), (2, 1, 0.8, 0.8), (3, 1, 0.8, 0.8), (4, 2, 0.4, 2), (4, 3, 1, 1.3)],
            [(4, 0, 2.5, 6.0, 6.0)],
            PlanLimits(ceiling=[INF] * 4 + [0.77]),
        ),
    ],
    ids=["other routes", "tolls that are not unique", "the same with a ceiling"],
)
def test_programs_that_are_hard_on_newton_are_solved(
    links: list[Any], pairs: list[Any], limits: PlanLimits | None
) -> None:
    network = TransportNetwork(
        pd.DataFrame(links, columns=list("ijdc")),
        pd.DataFrame(pairs, columns=["o", "dest", "w", "u", "m"]),
    )
    plan = plan_network(network, limits, steps=40)
    assert plan.violation <= 1e-5
    again = assess(network, plan.assessment.capacity)
    assert plan.assessment.profit == pytest.approx(again.profit, abs=1e-6)


@pytest.mark.parametrize("money", [1e-9, 1.0, 1e9])
def test_a_budget_holds_in_any_unit_of_money(money: float) -> None:
    ends = [(1, 2), (2, 1)]
    pairs = [(*each, 1.0, 3.0, 4 * money) for each in ends]
    network = TransportNetwork(
        pd.DataFrame([(i, j, 1.0, money) for i, j in ends], columns=list("ijdc")),
        pd.DataFrame(pairs, columns=["o", "dest", "w", "u", "m"]),
    )
    plan = plan_network(network, PlanLimits(budget=money), steps=40)
    # A passenger costs 1 and pays 4: the whole budget is spent on what earns three times as much.
    assert plan.assessment.profit == pytest.approx(3 * money, rel=1e-2)
    assert plan.violation <= 1e-5


def test_what_a_least_share_needs_is_built_however_small_the_pair() -> None:
    ends = [(1, 2), (2, 1)]
    network = TransportNetwork(
        pd.DataFrame([(i, j, 1.0, 1.0) for i, j in ends], columns=list("ijdc")),
        pd.DataFrame(
            [(1, 2, 1e5, 3.0, 4.0), (2, 1, 1.0, 3.0, 0.0)], columns=["o", "dest", "w", "u", "m"]
        ),
    )
    plan = plan_network(network, PlanLimits(least_share=[0.0, 0.5]), steps=40)
    assert plan.assessment.share[1] >= 0.5 - 1e-5


def test_nothing_is_built_where_all_that_was_found_loses_money() -> None:
    plan = plan_network(three_node(), steps=3, first_penalties=(0.1,), start=1.0)
    assert plan.blocc.profit < 0.0
    assert plan.assessment.profit == 0.0


def test_refused_options_leave_saved_runs_where_they_are(tmp_path: Path) -> None:
    options = {"steps": 5, "first_penalties": (0.3,), "trim": False, "checkpoints": tmp_path}
    plan_network(three_node(), **options)
    for wrong in ({"callbacks": [3]}, {"first_penalties": (200.0,)}, {"start": -1.0}):
        with pytest.raises((OptionError, ProblemError)):
            plan_network(three_node(), **{**options, **wrong})
        assert len(list(tmp_path.glob("blocc-*.pt"))) == 1
