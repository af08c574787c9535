"""Each example's quick run, by what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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
