"""birq_speech.py, by what it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from bilevel.problems.speech import SpeechModel
from bilevel.problems.speech.data import espeak_corpus
from bilevel.problems.speech.recognition import (
    Recogniser,
    estimate_ngrams,
    transcribe,
    write_arpa,
)
from bilevel.problems.speech.sources import StoredSpeech

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--steps", 4, "--finetuning-steps", 4, "--batch", 4, "--device", "cpu")
SIZES = {"train_minutes": 0.5, "labelled_minutes": 0.3, "test_utterances": 6}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    environment = os.environ.get("BILEVEL_CACHE")
    os.environ["BILEVEL_CACHE"] = str(folder)
    espeak_corpus(**SIZES, progress=False)
    if environment is None:
        del os.environ["BILEVEL_CACHE"]
    else:
        os.environ["BILEVEL_CACHE"] = environment
    return folder


def run(cache, *options):
    sizes = ["--minutes", 0.5, "--labelled-minutes", 0.3, "--test-utterances", 6]
    if "--data" in options:
        sizes = []
    return subprocess.run(
        [sys.executable, EXAMPLES / "birq_speech.py", *map(str, [*SMALL, *sizes, *options])],
        capture_output=True,
        text=True,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "BILEVEL_CACHE": str(cache),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("birq")
    done = run(cache, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_summary_has_every_method_with_its_measures(finished):
    out, printed = finished
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["scratch", "best-rq", "birq", "relabel"]
    assert summary["test_utterances"] == 6
    assert summary["language_model"]["order"] == 3
    for method, (numbers,) in summary["methods"].items():
        for decoder in ("greedy", "beam"):
            found = numbers[decoder]
            assert 0 < found["error_rate"] <= 1.5
            assert found["low"] <= found["error_rate"] <= found["high"]
            assert f"{100 * found['error_rate']:.1f} %" in printed
        assert numbers["unit"] == "phone"
        assert len(numbers["probes"]) == 7
        assert numbers["steps"] == (0 if method == "scratch" else 4)
        assert numbers["frames"] == (0 if method == "scratch" else 4 * 4 * 40)
        assert numbers["peak_memory_bytes"] > 1e6
        assert method in printed


def test_files_are_written(finished):
    out, _ = finished
    for name in ("config.json", "history.csv", "error_rates.png", "probes.svg", "pretraining.png"):
        assert (out / name).stat().st_size > 0
    history = pd.read_csv(out / "history.csv")
    assert set(history["method"]) == {"best-rq", "birq", "relabel"}
    transcripts = pd.read_csv(out / "birq-seed0" / "transcripts.csv")
    assert len(transcripts) == 6
    model = SpeechModel.from_pretrained(out / "birq-seed0" / "pretrained")
    assert bool(model.enhanced_projection.calibrated)


def test_the_saved_recogniser_hears_what_the_run_heard(cache, finished):
    out, _ = finished
    recogniser = Recogniser.from_pretrained(out / "birq-seed0" / "recogniser")
    corpus = espeak_corpus(next(cache.iterdir()), **SIZES)
    heard = {each.id: each for each in transcribe(recogniser, StoredSpeech.read(corpus).tested())}
    table = pd.read_csv(out / "birq-seed0" / "transcripts.csv", keep_default_na=False)
    assert table["greedy"].str.len().sum() > 0
    for row in table.itertuples():
        assert heard[row.id].reference == row.reference
        assert heard[row.id].hypothesis == row.greedy


def test_arms_begin_alike_and_differ_by_their_pretraining(finished):
    out, _ = finished
    weights = {
        name: SpeechModel.from_pretrained(out / f"{name}-seed0" / "pretrained").encoder.state_dict()
        for name in ("scratch", "best-rq", "birq")
    }
    for name in ("best-rq", "birq"):
        assert any(
            not torch.equal(value, weights["scratch"][key]) for key, value in weights[name].items()
        )
        for key, value in weights[name].items():  # four small steps
            torch.testing.assert_close(value, weights["scratch"][key], atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_finished_arms_are_not_repeated_and_stages_follow_one_another(cache, finished, tmp_path):
    out, _ = finished
    before = (out / "birq-seed0" / "result.json").stat().st_mtime_ns
    again = run(cache, "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert (out / "birq-seed0" / "result.json").stat().st_mtime_ns == before
    early = run(cache, "--out", tmp_path, "--method", "birq", "--stage", "finetune")
    assert early.returncode == 1
    assert "run --stage pretrain first" in early.stderr
    assert "Traceback" not in early.stderr
    for stage in ("pretrain", "finetune"):
        done = run(cache, "--out", tmp_path, "--method", "birq", "--stage", stage)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "summary.json").is_file() == (stage == "finetune")
    staged = json.loads((tmp_path / "birq-seed0" / "result.json").read_text())
    whole = json.loads((out / "birq-seed0" / "result.json").read_text())
    for decoder in ("greedy", "beam"):
        assert staged[decoder]["error_rate"] == whole[decoder]["error_rate"]
    assert staged["probes"] == whole["probes"]


def test_a_language_model_in_a_file_is_searched_with_again(cache, finished, tmp_path):
    out, _ = finished
    arm = tmp_path / "birq-seed0"
    shutil.copytree(out / "birq-seed0", arm)
    table = pd.read_csv(arm / "transcripts.csv", keep_default_na=False)
    write_arpa(estimate_ngrams([each.split() for each in table["reference"]], 4), tmp_path / "lm")
    options = ("--method", "birq", "--stage", "evaluate", "--lm", tmp_path / "lm")
    done = run(cache, *options, "--lm-weight", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    again = pd.read_csv(arm / "transcripts.csv", keep_default_na=False)
    assert (again["greedy"] == table["greedy"]).all()
    assert (again["beam"] != table["beam"]).any()
    before, after = (
        json.loads((place / "birq-seed0" / "result.json").read_text()) for place in (out, tmp_path)
    )
    assert after["greedy"]["error_rate"] == before["greedy"]["error_rate"]
    assert after["probes"] == before["probes"]
    assert json.loads((tmp_path / "summary.json").read_text())["language_model"]["order"] == 4


def test_own_speech_is_streamed_from_manifests(cache, tmp_path):
    corpus = espeak_corpus(next(cache.iterdir()), **SIZES)
    for name in ("train", "labelled", "test"):
        rows = [
            {"audio_filepath": str(u.path), "duration": u.duration, "text": u.text, "id": u.id}
            for u in getattr(corpus, name)
        ]
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    data = ["--data", tmp_path / "train.json", "--labelled", tmp_path / "labelled.json"]
    done = run(
        cache, *data, "--test", tmp_path / "test.json", "--method", "birq", "--batch-seconds", 12,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (numbers,) = summary["methods"]["birq"]
    assert summary["unit"] == numbers["unit"] == "word"
    assert numbers["probes"] == []
    assert 0 < numbers["beam"]["error_rate"] <= 1.5
    assert numbers["frames"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere", "--labelled", "x", "--test", "y"], "there is no corpus at nowhere"),
        (["--layer", 9], "layer 9 of an encoder with 5 layers"),
        (["--penalty", -1], "penalty"),
        (["--lm", "nowhere.arpa"], "the language model nowhere.arpa cannot be read"),
        (["--lm", __file__], "no line \\data\\ in the file"),
        (["--beam", 0], "--beam 0: at least 1 is needed"),
        (["--lm-weight", "nan"], "alpha=nan, expected a finite number"),
        (["--stage", "evaluate"], "run --stage finetune first"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(cache, tmp_path, options, message):
    done = run(cache, *options, "--method", "birq", "--out", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
