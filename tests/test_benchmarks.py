"""The benchmarks load, and a small configuration of each runs to the end and gives sane numbers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("benchopt") is None,
        reason="benchopt is not installed: pip install 'bilevel[benchmark]'",
    ),
]

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(benchmark: str, output: Path, *options: str) -> pd.DataFrame:
    # An error of a component ends the run, and does not leave a row out.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCHOPT_RAISE_ON_ERROR": "true"}
    command = [sys.executable, "-m", "benchopt", "run", str(BENCHMARKS / benchmark)]
    fixed = ["--no-cache", "--no-plot", "--seed", "0", "--output", str(output)]
    done = subprocess.run(
        [*command, *fixed, *options],
        env=environment,
        capture_output=True,
        text=True,
        cwd=output.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return pd.read_parquet(output)


def last(results: pd.DataFrame) -> pd.DataFrame:
    return results.sort_values("stop_val").groupby("solver_name").last()


def test_known_optima_are_told_from_points_that_are_not(tmp_path):
    results = run(
        "known_optima", tmp_path / "results.parquet",
        "-d", "known optimum[problem=DeSilva1978]",
        "-s", "BLOCC[restarts=0]", "-s", "KKT relaxation, SLSQP",
        "-s", "BLOCC, Adam[steps=5]", "-s", "Gradient penalty[steps=5]",
    )  # fmt: skip
    solved = last(results)["objective_solved"]
    assert solved["BLOCC[0 restarts]"] == 1
    assert solved["KKT relaxation, SLSQP"] == 1
    assert solved["BLOCC, Adam[lr 0.5, 5 steps]"] == 0
    assert solved["Gradient penalty[lr 0.05, 5 steps]"] == 0


@pytest.mark.parametrize("m", [0, 3])
def test_every_unbiased_method_approaches_the_constructed_optimum(tmp_path, m):
    results = run(
        "quadratics", tmp_path / "results.parquet",
        "-d", f"random quadratic['n, d, m'=[(3, 6, {m})], instance=0]",
        "-n", "14", "--timeout", "20",
    )  # fmt: skip
    ends = last(results)
    distance = ends["objective_value"]
    assert distance["BLOCC"] < 1e-4
    assert distance["Implicit KKT"] < 1e-4
    unbiased = ends[~ends.index.str.startswith("PBGDFree")]
    assert (unbiased["objective_value"] < 0.1).all()
    assert len(ends) == (8 if m == 0 else 4)


def test_svm_benchmark_descends_within_the_constraints(tmp_path):
    results = run(
        "svm", tmp_path / "results.parquet",
        "-d", "breast_cancer[split=0]", "-s", "BLOCC, DC steps", "-s", "Implicit KKT",
        "-n", "4", "--timeout", "20",
    )  # fmt: skip
    ends = last(results)
    assert (ends["objective_violation"] <= 1e-6).all()
    assert ends["objective_value"]["BLOCC, DC steps"] < 0.5 * results["objective_value"].max()


def test_library_and_hand_written_steps_agree_and_hold_what_they_should(tmp_path):
    results = run(
        "overhead", tmp_path / "results.parquet", "-d", "two numbers[long_run=200]",
        "-s", "PBGD[optimizer=SGD]", "-s", "PBGDFree[optimizer=SGD]",
    )  # fmt: skip
    ends = last(results)
    assert (ends["objective_difference"] == 0).all()
    assert (ends["objective_tensor_growth_bytes"] == 0).all()
    copies = ends["objective_further_copies_of_y"]
    assert copies["PBGDFree[optimizer=SGD]"] == 0
    assert copies["PBGD[optimizer=SGD]"] == 1


def test_transport_plans_are_judged_by_their_true_profit(tmp_path):
    results = run(
        "transport", tmp_path / "results.parquet",
        "-d", "three-node",
        "-s", "BLOCC, DC steps[first_penalty=3.0,steps=30]",
        "-s", "BLOCC, Adam['first_penalty, last_penalty'=[(1.0, 50.0)],steps=20]",
        "-s", "Planner[rounds=2,steps=30]",
    )  # fmt: skip
    found = last(results)
    profit = found["objective_trimmed_profit"]
    assert profit["Planner[30 steps, 2 rounds]"] == pytest.approx(1.761594, abs=1e-3)
    assert profit.max() <= 1.761594 + 1e-5
    assert (found["objective_certified_gap"] <= 1e-7).all()
