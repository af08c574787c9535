"""Each example's quick run, by what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import networkx
import numpy as np
import pandas as pd
import pytest

from bilevel.problems.transport import assess, nine_node, three_node

EXAMPLES = Path(__file__).parent.parent / "examples"
METRICS = {
    "test_accuracy",
    "validation_accuracy",
    "validation_loss",
    "upper_value",
    "lower_gap",
    "constraint_violation",
    "seconds",
}


def run(script, *options):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )


# svm_hyperparameters.py


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("svm")
    finished = run("svm_hyperparameters.py", "--quick", "--out", folder)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


@pytest.fixture(scope="module")
def summary(quick):
    return json.loads((quick[0] / "summary.json").read_text())


@pytest.mark.parametrize("solver", ["blocc", "pbgd-free", "dc"])
@pytest.mark.parametrize("response", ["penalised", "exact"])
def test_summary_has_every_metric_over_seeds(summary, solver, response):
    lists = summary[solver][response]
    assert set(lists) == METRICS
    for values in lists.values():
        assert len(values) == len(summary["seeds"]) == 2
        assert np.all(np.isfinite(values))
    assert max(lists["constraint_violation"]) <= 1e-6
    assert min(lists["upper_value"]) >= max(summary["relaxed_optimum"]["value"])


def test_exact_responses_have_no_lower_gap(summary):
    for solver in ("blocc", "pbgd-free", "dc"):
        assert np.max(np.abs(summary[solver]["exact"]["lower_gap"])) <= 1e-6
    assert min(summary["blocc"]["penalised"]["lower_gap"]) > 0.1


def test_history_ends_at_the_summary(quick, summary):
    history = pd.read_csv(quick[0] / "history.csv")
    for (solver, response, seed), rows in history.groupby(["solver", "response", "seed"]):
        assert list(rows["step"]) == list(range(len(rows)))
        for metric in METRICS - {"seconds"}:
            expected = summary[solver][response][metric][seed]
            assert rows[metric].iloc[-1] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_configuration_says_what_was_run(quick):
    configuration = json.loads((quick[0] / "config.json").read_text())
    assert configuration["arguments"]["dataset"] == "breast_cancer"
    assert configuration["arguments"]["train"] == 300
    assert "torch" in configuration["versions"]


def test_table_has_every_method_beside_the_grid_search(quick):
    folder, printed = quick
    for name in ("blocc", "pbgd-free", "dc", "f*", "GridSearchCV(LinearSVC)", "bias ×"):
        assert name in printed
    assert "not the classifier to recommend" in printed
    for figure in ("accuracy", "loss", "comparison"):
        assert (folder / f"{figure}.png").stat().st_size > 10_000
        assert (folder / f"{figure}.svg").read_text().startswith("<?xml")


def test_a_split_that_is_impossible_is_named(tmp_path):
    finished = run("svm_hyperparameters.py", "--train", 600, "--out", tmp_path / "none")
    assert finished.returncode == 1
    assert finished.stderr.startswith("OptionError: breast_cancer has 569 rows")
    assert not (tmp_path / "none").exists()


# seville_transport.py


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transport")
    finished = run("seville_transport.py", "--quick", "--out", folder)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


def test_a_plan_is_better_after_each_stage_and_ends_near_the_best_known(planned):
    found = json.loads((planned[0] / "summary.json").read_text())
    profits = [stage["true_profit"] for stage in found["stages"].values()]
    assert list(found["stages"]) == ["BLOCC", "trimmed", "polished"]
    assert profits == sorted(profits)
    assert profits[0] >= 16.0
    assert 17.2 <= found["true_profit"] == profits[-1] <= 17.30
    assert found["true_profit"] == pytest.approx(
        found["revenue"] - found["construction_cost"], rel=1e-12
    )
    assert abs(found["lower_gap"]) <= 1e-6
    assert found["violation"] == 0


def test_the_written_plan_is_the_one_of_the_summary(planned):
    found = json.loads((planned[0] / "summary.json").read_text())
    plan = pd.read_csv(planned[0] / "plan.csv")
    assert list(plan.columns) == ["i", "j", "capacity", "flow", "toll"]
    network = nine_node()
    assert list(zip(plan["i"], plan["j"], strict=True)) == list(
        zip(network.links["i"], network.links["j"], strict=True)
    )
    assessed = assess(network, plan["capacity"])
    assert assessed.profit == pytest.approx(found["true_profit"], rel=1e-6)
    assert np.all(plan["flow"] <= plan["capacity"] + 1e-6)
    graph = networkx.read_graphml(planned[0] / "plan.graphml")
    built = {
        (str(i), str(j)): a
        for i, j, a in zip(plan["i"], plan["j"], plan["capacity"], strict=True)
        if a
    }
    assert {(i, j): edge["capacity"] for i, j, edge in graph.edges(data=True)} == built


def test_transport_figures_history_and_configuration_are_written(planned):
    folder, printed = planned
    for figure in ("map", "convergence"):
        assert (folder / f"{figure}.png").stat().st_size > 10_000
        assert (folder / f"{figure}.svg").read_text().startswith("<?xml")
    history = pd.read_csv(folder / "history.csv")
    assert history.loc[history["stage"] == "BLOCC", "penalty"].is_monotonic_increasing
    assert history.loc[history["stage"] == "polish", "true_profit"].is_monotonic_increasing
    true = history.loc[history["stage"] == "BLOCC", "true_profit"].dropna()
    assert len(true) == 30
    assert true.iloc[-1] == pytest.approx(16.4, abs=1.0)
    assert json.loads((folder / "config.json").read_text())["arguments"]["network"] == "nine-node"
    assert "true profit" in printed


@pytest.fixture
def tables(tmp_path):
    network = three_node()
    network.links.to_csv(tmp_path / "links.csv", index=False)
    network.pairs.to_csv(tmp_path / "demand.csv", index=False)
    networkx.write_graphml(network.to_graph(), tmp_path / "graph.graphml")
    return tmp_path


LIMITS = ("--budget", "1.0", "--ceiling", "0.7", "--quick")


def within_limits(folder):
    found = json.loads((folder / "summary.json").read_text())
    assert found["construction_cost"] <= 1.0 + 1e-6
    assert pd.read_csv(folder / "plan.csv")["capacity"].max() <= 0.7 + 1e-6
    return found["true_profit"]


def test_tables_are_planned_within_limits_and_resumed_only_with_the_same(tables):
    out = tables / "out"
    data = ["--links", tables / "links.csv", "--demand", tables / "demand.csv", "--out", out]
    finished = run("seville_transport.py", *data, *LIMITS)
    assert finished.returncode == 0, finished.stderr
    profit = within_limits(out)
    assert profit > 0.5
    resumed = run("seville_transport.py", *data, *LIMITS, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert within_limits(out) == pytest.approx(profit, rel=1e-6)
    other = run("seville_transport.py", *data, *LIMITS, "--resume", "--budget", "0.9")
    assert other.returncode == 1
    assert "had budget=1.0 and not 0.9" in other.stderr


def test_a_graph_is_planned_within_limits(tables):
    data = ["--graph", tables / "graph.graphml", "--demand", tables / "demand.csv"]
    finished = run("seville_transport.py", *data, *LIMITS, "--out", tables / "out")
    assert finished.returncode == 0, finished.stderr
    assert within_limits(tables / "out") > 0.5


def test_a_folder_is_planned_with_limits_of_its_links_and_pairs(tables):
    (tables / "ceilings.csv").write_text("i,j,ceiling\n1,2,0.4\n")
    (tables / "shares.csv").write_text("o,dest,share\n2,1,0.6\n")
    finished = run(
        "seville_transport.py", "--network", tables, "--ceiling", tables / "ceilings.csv",
        "--least-share", tables / "shares.csv", "--quick", "--out", tables / "out",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    plan = pd.read_csv(tables / "out" / "plan.csv").set_index(["i", "j"])
    pairs = pd.read_csv(tables / "out" / "pairs.csv").set_index(["o", "dest"])
    assert plan.loc[(1, 2), "capacity"] == pytest.approx(0.4, abs=1e-3)
    assert pairs.loc[(2, 1), "share"] >= 0.6 - 1e-5
    assert plan.loc[(2, 1), "capacity"] > 0.6


def test_a_folder_is_resumed_also_where_the_results_lie_in_it_and_names_hold_dollars(tables):
    for name in ("links", "demand"):
        table = pd.read_csv(tables / f"{name}.csv")
        ends = ["i", "j"] if name == "links" else ["o", "dest"]
        table[ends] = table[ends].map(lambda node: f"${node}\\frac$")
        table.to_csv(tables / f"{name}.csv", index=False)
    options = ["--network", tables, "--quick", "--out", tables / "results"]
    for more in ([], ["--resume"]):
        finished = run("seville_transport.py", *options, *more)
        assert finished.returncode == 0, finished.stderr
    (tables / "results" / "plan.csv").unlink()
    (tables / "results" / "plan.csv").mkdir()
    refused = run("seville_transport.py", *options)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_a_network_on_which_nothing_pays_is_drawn_without_links(tables):
    text = pd.read_csv(tables / "demand.csv").assign(m=0.0)
    text.to_csv(tables / "demand.csv", index=False)
    pd.read_csv(tables / "links.csv").assign(d=0.0).to_csv(tables / "links.csv", index=False)
    finished = run("seville_transport.py", "--network", tables, "--quick", "--out", tables / "out")
    assert finished.returncode == 0, finished.stderr
    assert "No link pays for itself" in finished.stdout
    assert (tables / "out" / "map.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ceiling", "none.csv"], "none.csv does not exist"),
        (["--ceiling", "links.csv"], "links.csv has no column 'ceiling'"),
        (["--least-share", "odd.csv"], "odd.csv, line 3: no pair with a demand leads from '1' to"),
        (["--least-share", "bad_shares.csv"], "line 2: share is 'half', expected a share in [0,"),
        (["--least-share", "twice.csv"], "twice.csv, line 3: '1' to '2' stands in an earlier line"),
        (["--first-penalties", "200"], "OptionError: first_penalties: found 200"),
        (["--demand", "demand.csv", "--links", "none.csv"], "none.csv does not exist"),
        (["--demand", "bad.csv", "--links", "links.csv"], "bad.csv line 2, column w"),
        (["--start", "published"], "OptionError: --start published is for --network seville"),
        (["--budget", "1e-9"], "ProblemError: budget=1e-09"),
        (["--resume"], "OptionError: --resume: there are no checkpoints"),
    ],
)  # fmt: skip
def test_mistakes_are_named_without_a_traceback_and_write_nothing(
    tables, monkeypatch, options, message
):
    monkeypatch.chdir(tables)
    text = (tables / "demand.csv").read_text()
    (tables / "bad.csv").write_text(text.replace("1.0", "many", 1))
    (tables / "odd.csv").write_text("o,dest,share\n1,2,0.1\n1,77,0.1\n")
    (tables / "bad_shares.csv").write_text("o,dest,share\n1,2,half\n")
    (tables / "twice.csv").write_text("o,dest,share\n1,2,0.1\n1,2,0.2\n")
    finished = run("seville_transport.py", *options, "--out", "out")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tables / "out").exists()
