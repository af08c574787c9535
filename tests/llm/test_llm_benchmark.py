"""The benchmark of LLM fine-tuning runs every method, each for its time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bilevel.problems.llm import METHODS

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "llm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("benchopt") is None,
        reason="benchopt is not installed: pip install 'bilevel[benchmark]'",
    ),
]


def test_every_method_is_scored_along_its_time(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "benchopt", "run", str(BENCHMARK), "--no-cache", "--no-plot",
            "--seed", "0", "--output", str(tmp_path / "results.parquet"),
            "-o", "LLM fine-tuning[seconds=3.0,points=3]",
            "-d", "Python library[records=400,tests=30,base_steps=20,batch=4]",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "BENCHOPT_RAISE_ON_ERROR": "true"},
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = pd.read_parquet(tmp_path / "results.parquet").sort_values("stop_val")
    runs = results.groupby(results["solver_name"].str.partition("[")[0])
    assert len(runs) == len(METHODS)
    start, end = runs.first(), runs.last()
    assert start["objective_dpo_loss"].tolist() == pytest.approx([0.693147] * 7, abs=1e-5)
    assert start["objective_sft_loss"].nunique() == 1
    assert (end["time"] >= 3.0).all()
    assert (end["objective_steps"] >= 1).all()
    for method in ("DPO", "PBGD-Free"):
        assert runs["objective_dpo_loss"].min()[method] < 0.68
    forgotten = end["objective_sft_loss"]["DPO"]  # what it was not trained on
    assert end["objective_sft_loss"]["SFT"] < forgotten - 0.1
    assert end["objective_sft_loss"]["PBGD-Free"] < forgotten - 0.1
