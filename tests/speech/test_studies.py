"""birq_study.py and birq_cost.py: what they refuse, keep, and go on from."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from signals import spoken_store

from bilevel.problems.speech.sources import StoredSpeech

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"train_minutes": 30.0, "labelled_minutes": 5.0, "seed": 0}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "stores.pt"
    torch.save((SIZES, StoredSpeech(*(spoken_store(12, seed) for seed in range(3)))), path)
    return path


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Calls a script's main here, and returns what it stops with."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def call(name, *options):
        module = importlib.import_module(name)
        words = [f"{name}.py", *options, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stopped:
            module.main()
        return stopped.value.code

    return call


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("birq_study", ["--arms", "nonsense"], "no arm 'nonsense' in these studies, but capped"),
        ("birq_study", ["--seeds", "0"], "0: at least 1 is needed"),
        ("birq_study", ["--jobs", "0"], "0: at least 1 is needed"),
        ("birq_study", ["--lr", "nan"], "nan: at least"),
        ("birq_study", ["--device", "tpu9"], "--device"),
        ("birq_cost", ["--batch", "0"], "0: at least 1 is needed"),
        ("birq_cost", ["--seconds", "nan"], "nan: at least 0.04 is needed"),
        ("birq_cost", ["--warm-up", "-5"], "-5: at least 0 is needed"),
        ("birq_cost", ["--steps", "few"], "few is no int"),
    ],
)
def test_options_out_of_range_are_refused(script, capsys, name, options, message):
    assert script(name, *options) == 2
    assert message in capsys.readouterr().err


def test_features_of_another_corpus_are_refused(script, stores):
    found = script("birq_study", "--stores", stores, "--minutes", 99)
    assert "holds the features of {'train_minutes': 30.0" in found


def test_damaged_features_are_named_before_any_worker_is_begun(script, stores, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(stores.read_bytes()[:5000])
    assert "is no file of features" in script("birq_study", "--stores", cut)


def test_damaged_options_are_named(script, stores, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "options.json").write_text("{")
    assert "options.json is damaged" in script("birq_study", "--stores", stores)


def test_a_line_that_was_cut_off_is_dropped(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kept_lines = importlib.import_module("kept_results").kept_lines
    path = tmp_path / "results.jsonl"
    path.write_text('{"arm": "BiRQ"}\n{"arm": "rel')
    assert kept_lines(path) == [{"arm": "BiRQ"}]
    assert path.read_text() == '{"arm": "BiRQ"}\n'
    path.write_text('{"arm": "BiRQ"\n{"arm": "relabel"}\n')
    with pytest.raises(SystemExit, match="line 1 is damaged"):
        kept_lines(path)


@pytest.mark.slow
def test_a_study_fails_where_a_run_does_and_relabels_with_the_same_quantiser(stores, tmp_path):
    def study(*options):
        return subprocess.run(
            [sys.executable, BENCHMARKS / "birq_study.py", "--study", "learning", "--seeds", "1",
             "--steps", "3", "--finetuning-steps", "3", "--batch", "4", "--crop", "64",
             "--stores", stores, "--out", tmp_path, *options],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = study("--arms", "BEST-RQ", "relabel")
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [each["frames"] for each in results] == [3 * 4 * 16] * 2  # of the encoder
    means = pd.read_csv(tmp_path / "means.csv", index_col="arm")
    assert means.loc["relabel", "anchor information"] == pytest.approx(
        means.loc["BEST-RQ", "anchor information"]
    )
    (tmp_path / "best-rq-seed0" / "model.safetensors").write_bytes(b"broken")
    lines = [json.dumps(each) + "\n" for each in results if each["arm"] == "BEST-RQ"]
    (tmp_path / "results.jsonl").write_text("".join(lines))
    failed = study("--arms", "relabel")
    assert failed.returncode == 1
    assert "1 of 1 runs failed" in failed.stderr


def test_the_study_compares_arms_sentence_by_sentence(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    birq_study = importlib.import_module("birq_study")

    def run(arm, seed, errors):
        return {"study": "learning", "arm": arm, "seed": seed, "phones": [10, 30],
                "phone_errors": {"0.01 0.002 60": {"greedy": errors}}}  # fmt: skip

    results = [run("scratch", 0, [5, 11]), run("scratch", 1, [5, 15]),
               run("BEST-RQ", 0, [4, 10]), run("BEST-RQ", 1, [4, 14]),
               run("BiRQ", 1, [3, 13])]  # fmt: skip
    table = birq_study.error_table(results).set_index("arm")
    assert table.loc["scratch", "rate"] == pytest.approx(36 / 80)
    assert table.loc["scratch", "std"] == pytest.approx(np.std([16 / 40, 20 / 40], ddof=1))
    # One error less in either sentence and seed: 2 of 20 phones in one, 2 of 60 in the other.
    best_rq = table.loc["BEST-RQ"]
    assert best_rq["minus scratch"] == pytest.approx(-4 / 80)
    assert best_rq["minus scratch, low"] == pytest.approx(-2 / 20)
    assert best_rq["minus scratch, high"] == pytest.approx(-2 / 60)
    assert table.loc["BiRQ", "seeds"] == 1
    assert table.loc["BiRQ", "minus BEST-RQ"] == pytest.approx(-2 / 40)  # of the common seed
