"""birq_speech.py, by what it writes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bilevel.errors import OptionError
from bilevel.problems.speech import SpeechModel
from bilevel.problems.speech.data import espeak_corpus
from bilevel.problems.speech.measures import TextNormaliser, character_errors
from bilevel.problems.speech.recognition import (
    BeamSearch,
    Recogniser,
    estimate_ngrams,
    greedy_decode,
    transcribe,
    write_arpa,
)
from bilevel.problems.speech.sources import StoredSpeech

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--steps", 4, "--finetuning-steps", 2, "--batch", 4, "--device", "cpu")
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
        assert (numbers["teacher_seconds"] > 0) == (method == "relabel")
        assert numbers["greedy"]["character_error_rate"] is None
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
    words = recogniser.vocabulary.words
    search = BeamSearch(
        vocabulary=recogniser.vocabulary,
        language_model=estimate_ngrams([words(each) for each in corpus.labelled]),
    )
    table = pd.read_csv(out / "birq-seed0" / "transcripts.csv", keep_default_na=False)
    table = table.set_index("id").sort_index()
    assert table["beam"].str.len().sum() > 0
    for name, decoder in (("greedy", greedy_decode), ("beam", search)):
        heard = transcribe(recogniser, StoredSpeech.read(corpus).tested(), decoder)
        heard.sort(key=lambda each: each.id)
        assert [each.reference for each in heard] == table["reference"].to_list()
        assert [each.hypothesis for each in heard] == table[name].to_list()


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


@pytest.fixture(scope="module")
def manifests(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifests")
    corpus = espeak_corpus(next(cache.iterdir()), **SIZES)
    for name in ("train", "labelled", "test"):
        rows = [
            {"audio_filepath": str(u.path), "duration": u.duration, "text": u.text, "id": u.id}
            for u in getattr(corpus, name)
        ]
        if name == "train":
            rows.append({**rows[0], "id": "lost", "audio_filepath": "lost.wav"})
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def own_speech(folder):
    names = {"data": "train", "labelled": "labelled", "test": "test"}
    parts = [(f"--{option}", folder / f"{name}.json") for option, name in names.items()]
    return [each for pair in parts for each in pair] + ["--batch-seconds", 12]


def test_own_speech_is_streamed_from_manifests(cache, manifests, tmp_path):
    done = run(cache, *own_speech(manifests), "--method", "birq", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 missing (lost)" in done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped"]["train"] == {"lost": "missing"}
    (numbers,) = summary["methods"]["birq"]
    assert summary["unit"] == numbers["unit"] == "word"
    assert numbers["probes"] == []
    assert 0 < numbers["beam"]["error_rate"] <= 1.5
    assert numbers["frames"] > 0
    rate = numbers["greedy"]["character_error_rate"]
    assert f"{100 * rate:.1f} %" in done.stdout
    heard = pd.read_csv(tmp_path / "birq-seed0" / "transcripts.csv", keep_default_na=False)
    texts = heard["reference"].tolist(), heard["greedy"].tolist()
    counts = character_errors(*texts, TextNormaliser())
    assert rate == counts.errors.sum() / counts.lengths.sum()
    for column in ("best probe", "labels say"):  # nothing is known of phones
        assert column not in done.stdout


@pytest.mark.slow
def test_a_run_of_two_processes_begins_anew_or_goes_on_from_its_checkpoints(
    cache, manifests, tmp_path
):
    def torchrun(*more):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             EXAMPLES / "birq_speech.py",
             *map(str, [*SMALL, *own_speech(manifests), "--method", "best-rq", *more])],
            capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "BILEVEL_CACHE": str(cache)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "FutureWarning" not in done.stderr
        return done.stdout

    arm = tmp_path / "best-rq-seed0"
    assert torchrun("--out", tmp_path).count("word error rates") == 1
    begun = pd.read_csv(arm / "history.csv")
    shutil.rmtree(arm / "pretrained")
    (arm / "result.json").unlink()
    torchrun("--out", tmp_path, "--resume")
    pd.testing.assert_frame_equal(pd.read_csv(arm / "history.csv"), begun)
    torchrun("--out", tmp_path)
    anew = pd.read_csv(arm / "history.csv")
    assert anew["lower"].tolist() == pytest.approx(begun["lower"].tolist(), rel=1e-4)
    assert anew["seconds"].tolist() != begun["seconds"].tolist()


# In this process: what is refused, kept and left out


@pytest.fixture
def example(cache, monkeypatch):
    """The example's main; returns what it stops with, or nothing."""
    monkeypatch.setenv("BILEVEL_CACHE", str(cache))
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("birq_speech")

    def call(*options):
        sizes = ["--minutes", 0.5, "--labelled-minutes", 0.3, "--test-utterances", 6]
        if "--data" in options:
            sizes = []
        words = [*SMALL, *sizes, *options]
        monkeypatch.setattr(sys, "argv", ["birq_speech.py", *map(str, words)])
        try:
            module.main()
        except SystemExit as stopped:
            return stopped.code
        return None

    call.module = module
    return call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere", "--labelled", "x", "--test", "y"], "there is no corpus at nowhere"),
        (["--layer", 9], "layer 9 of an encoder with 5 layers"),
        (["--penalty", -1], "penalty=-1.0"),
        (["--lr", "nan"], "lr=nan"),
        (["--encoder-lr", 0], "encoder_lr=0.0"),
        (["--anchor-share", 2], "anchor_share=2.0"),
        (["--batch", 999], "a batch of 999 crops"),
        (["--lm", "nowhere.arpa"], "nowhere.arpa cannot be read"),
        (["--lm-weight", "nan"], "alpha=nan, expected a finite number"),
        (["--stage", "evaluate"], "run --stage finetune first"),
        (["--stage", "finetune"], "run --stage pretrain first"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_removed(example, tmp_path, options, message):
    earlier = tmp_path / "birq-seed0" / "kept"
    earlier.mkdir(parents=True)
    found = example(*options, "--method", "birq", "--out", tmp_path)
    assert message in found
    assert earlier.is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam", 0], "--beam 0: at least 1 is needed"),
        (["--batch-seconds", 0], "--batch-seconds 0.0: at least 0.1 is needed"),
        (["--data", "x", "--labelled", "y"], "needs --labelled and --test"),
        (["--data", "x", "--test", "y"], "needs --labelled and --test"),
        (["--labelled", "y"], "go with --data FOLDER"),
        (["--format", "nemo"], "go with --data FOLDER"),
        (["--data", "x", "--format", "tape"], "invalid choice: 'tape'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(example, capsys, options, message):
    assert example(*options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [(KeyboardInterrupt(), "stopped; --resume goes on"), (OSError(28, "no space"), "no space")],
)
def test_a_run_that_is_stopped_ends_in_a_line(example, monkeypatch, tmp_path, error, message):
    def run_arm(*args):
        raise error

    monkeypatch.setattr(example.module, "run_arm", run_arm)
    assert message in example("--method", "birq", "--out", tmp_path)


def test_speech_without_labels_can_be_pretrained_on(example, manifests, tmp_path):
    with pytest.warns(UserWarning, match="lost"):
        assert example(
            "--data", manifests / "train.json", "--batch-seconds", 12, "--stage", "pretrain",
            "--method", "best-rq", "--out", tmp_path,
        ) is None  # fmt: skip
    assert (tmp_path / "best-rq-seed0" / "pretrained" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "finetune", "--layer", 2], "had layer=None and not 2"),
        (["--stage", "finetune", "--penalty", 3], "had penalty=24.0 and not 3.0"),
        (["--stage", "evaluate", "--finetuning-steps", 9], "had finetuning_steps=2 and not 9"),
        (["--resume", "--lr", 1e-4], "had lr=0.003 and not 0.0001"),
    ],
)
def test_later_stages_keep_the_options_of_the_earlier(example, finished, options, message):
    out, _ = finished
    before = (out / "birq-seed0" / "result.json").read_text()
    assert message in example(*options, "--method", "birq", "--out", out)
    assert (out / "birq-seed0" / "result.json").read_text() == before


def test_arms_of_other_options_are_left_out_of_the_table(example, finished, tmp_path, capsys):
    out = shutil.copytree(finished[0], tmp_path / "out")
    place = out / "relabel-seed0" / "config.json"
    configuration = json.loads(place.read_text())
    configuration["arguments"]["steps"] = 99
    place.write_text(json.dumps(configuration))
    assert example("--stage", "evaluate", "--method", "scratch", "--out", out) is None
    assert "left out: the run in" in (printed := capsys.readouterr().out)
    assert "had steps=99 and not 4" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["scratch", "best-rq", "birq"]


def test_a_damaged_result_is_named(example, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / "birq-seed0" / "result.json").write_text("{")
    found = example("--method", "scratch", "--resume", "--out", out)
    assert "result.json is damaged" in found


@pytest.mark.parametrize(("steps", "own"), [(4, False), (3, True)])
def test_relabelling_trains_its_teacher_beside_other_arms(
    example, finished, tmp_path, capsys, steps, own
):
    out = shutil.copytree(finished[0], tmp_path / "out")
    weights = out / "best-rq-seed0" / "pretrained" / "model.safetensors"
    before = weights.read_bytes()
    options = ("--method", "relabel", "--stage", "pretrain", "--steps", steps)
    assert example(*options, "--out", out) is None
    assert weights.read_bytes() == before
    assert (out / "relabel-seed0" / "teacher" / "pretrained").is_dir() == own
    assert ("best-rq, to label by" in capsys.readouterr().out) == own


def test_the_gradient_cap_is_the_models(example, monkeypatch):
    words = ["birq_speech.py", "--target-gradient", "capped", "--gradient-cap", "0.3"]
    monkeypatch.setattr(sys, "argv", words)
    labels = example.module.model_options(example.module.parse_arguments()).labels
    assert (labels.target_gradient, labels.gradient_cap) == ("capped", 0.3)


# What a run is resumed with


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"12")
    args = Namespace(data=tmp_path / "speech", steps=3, out=tmp_path)
    importlib.import_module("output").write_configuration(tmp_path, args)
    module = importlib.import_module("runs")
    module._hash.cache_clear()
    return module, args


def test_options_that_came_into_being_later_do_not_hinder_a_run(runs, tmp_path):
    module, args = runs
    args.bonus = 1.0
    module.require_same_run(tmp_path, args, set())
    args.steps = 4
    with pytest.raises(OptionError, match="had steps=3 and not 4"):
        module.require_same_run(tmp_path, args, set())


def test_a_folder_of_speech_that_has_changed_is_refused(runs, tmp_path):
    module, args = runs
    (tmp_path / "speech" / "b.wav").write_bytes(b"3")
    with pytest.raises(OptionError, match=r"speech has changed since the run"):
        module.require_same_run(tmp_path, args, set())


@pytest.mark.parametrize("content", ["[]", "{", '{"arguments": 1, "files": {}}'])
def test_a_damaged_configuration_is_named(runs, tmp_path, content):
    module, args = runs
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(OptionError, match=r"config\.json is damaged"):
        module.require_same_run(tmp_path, args, set())
