"""llm_finetuning.py, by what it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import INSTRUCTIONS, PREFERENCES, base, tokenizer

from bilevel.problems.llm import write_records

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(*options, code=0):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "llm_finetuning.py", *map(str, options)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model and records of one's own, as files."""
    import torch

    folder = tmp_path_factory.mktemp("inputs")
    base(dtype=torch.float32).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    write_records(PREFERENCES, folder / "preferences.jsonl")
    write_records(INSTRUCTIONS * 2, folder / "instructions.jsonl")
    return [
        "--model", folder / "model", "--preference-data", folder / "preferences.jsonl",
        "--sft-data", folder / "instructions.jsonl", "--records", 30, "--test-records", 10,
        "--steps", 6, "--post-steps", 4, "--batch", 5, "--device", "cpu", "--diagnostics", 1,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("llm")
    printed = run(*inputs, "--method", "pbgd-free", "pbgd", "sequential", "--out", out)
    return out, printed


def test_summary_table_and_figures(finished):
    out, printed = finished
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["pbgd-free", "pbgd", "sequential"]
    for method, (numbers,) in summary["methods"].items():
        assert numbers["steps"] == 6
        assert numbers["tokens"] > 6 * 15 * 10
        assert numbers["start"]["dpo_loss"] == pytest.approx(0.693147, abs=1e-5)
        assert numbers["trained"]["sft_loss"] < numbers["start"]["sft_loss"]
        assert numbers["post"]["train_sft_loss"] < numbers["trained"]["sft_loss"] + 0.5
        assert method in printed
        folder = out / f"{method}-seed0"
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert "PeftModel.from_pretrained" in (folder / "adapter" / "README.md").read_text()
    for name in ("config.json", "losses.png", "losses.svg", "diagnostics.png"):
        assert (out / name).stat().st_size > 0
    history = pd.read_csv(out / "history.csv")
    assert set(history["method"]) == set(summary["methods"])
    assert history.groupby("method")["step"].max().tolist() == [6, 6, 6]


def test_finished_arms_are_left_alone_and_the_second_stage_can_be_repeated(
    finished, inputs, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    before = json.loads((out / "pbgd-seed0" / "result.json").read_text())
    assert "==" not in run(*inputs, "--method", "pbgd", "--resume", "--out", out)
    run(*inputs, "--method", "pbgd", "--stage", "post-sft", "--out", out)
    after = json.loads((out / "pbgd-seed0" / "result.json").read_text())
    assert after["trained"] == before["trained"]
    assert after["post"]["sft_loss"] == pytest.approx(before["post"]["sft_loss"], abs=1e-5)


def test_quick_run_of_the_embedded_default(tmp_path):
    printed = run("--quick", "--out", tmp_path / "out")
    assert "pbgd-free" in printed
    assert "sequential" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preference-data", "x.jsonl"], "go together"),
        (["--model", "no/where", "--quick"], "OptionError: --model no/where"),
        (["--steps", "0"], "at least 1"),
        (["--method", "magic"], "invalid choice"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    code = 1 if "Error" in message else 2
    assert message in run(*options, "--out", tmp_path, code=code)


def test_a_run_is_resumed_with_its_own_options_only(finished, inputs):
    out = finished[0]
    printed = run(*inputs, "--method", "pbgd", "--lr", 0.5, "--resume", "--out", out, code=1)
    assert "had lr=0.001 and not 0.5" in printed
    assert json.loads((out / "config.json").read_text())["arguments"]["lr"] == 0.001


def test_one_s_own_records_train_the_small_model_too(inputs, tmp_path):
    files = inputs[2:6]
    small = ["--quick", "--template", "{}", "--stage", "train", "--method", "dpo"]
    printed = run(*files, *small, "--out", tmp_path, code=1)
    assert "(--records, --test-records: 40 to train on, 20 held out)" in printed
    card = tmp_path / "dpo-seed0" / "adapter" / "README.md"
    assert not card.exists()


def test_a_missing_adapter_is_named(inputs, tmp_path):
    printed = run(*inputs, "--stage", "post-sft", "--out", tmp_path, code=1)
    assert "there is no run in" in printed
