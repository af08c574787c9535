"""llm_finetuning.py, by what it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from tiny import INSTRUCTIONS, PREFERENCES, base, tokenizer

from bilevel.problems.llm import write_records

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def command(*options, processes=1):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable, *(torchrun if processes > 1 else []), str(EXAMPLES / "llm_finetuning.py"),
        *map(str, options),
    ]  # fmt: skip


def run(*options, code=0, processes=1):
    done = subprocess.run(
        command(*options, processes=processes),
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/where"], "OptionError: --model no/where"),
        (["--targets", "nowhere"], "name the modules"),
        (["--max-length", 8], "preferences.jsonl from record 1 on: record 1: the prompt has"),
    ],
)
def test_nothing_is_removed_before_all_is_checked(finished, inputs, options, message):
    out = finished[0]
    before = (out / "config.json").read_bytes()
    assert message in run(*inputs, "--method", "pbgd", *options, "--out", out, code=1)
    assert (out / "pbgd-seed0" / "adapter" / "adapter_model.safetensors").is_file()
    assert (out / "config.json").read_bytes() == before


def test_one_file_may_hold_both_kinds_of_records(inputs, tmp_path):
    rows = [
        {**vars(preference), "response": instruction.response}
        for preference, instruction in zip(PREFERENCES * 2, INSTRUCTIONS * 2, strict=True)
    ]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [*inputs, "--preference-data", file, "--sft-data", file, "--stage", "train"]
    assert "dpo" in run(*options, "--method", "dpo", "--out", tmp_path / "out")


def test_arms_of_other_options_are_not_this_run_s(finished, inputs, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    options = [*inputs, "--method", "dpo", "--lr", 0.01, "--stage", "train", "--out", out]
    assert "left out: the run in" in run(*options)
    assert list(json.loads((out / "summary.json").read_text())["methods"]) == ["dpo"]
    assert set(pd.read_csv(out / "history.csv")["method"]) == {"dpo"}
    printed = run(*options, "--method", "pbgd", "--resume", code=1)
    assert "had lr=0.001 and not 0.01" in printed


def test_a_second_stage_that_was_interrupted_is_not_the_one_before(finished, inputs, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    again = [*inputs, "--method", "pbgd", "--stage", "post-sft", "--out", out]
    missing = tmp_path / "copy" / "pbgd-seed0" / "adapter" / "adapter_model.safetensors"
    kept = missing.read_bytes()
    missing.write_bytes(b"ends here")
    run(*again, "--post-steps", 2, code=1)
    result = out / "pbgd-seed0" / "result.json"
    assert "post" not in json.loads(result.read_text())
    missing.write_bytes(kept)
    run(*again, "--post-steps", 2, "--resume")
    assert json.loads(result.read_text())["post"]["step"] == 2


def test_a_budget_of_time_is_scored_ten_times_and_not_spent_again(inputs, tmp_path):
    options = [*inputs, "--method", "sequential", "--stage", "train", "--time-budget", 2.0,
               "--out", tmp_path]  # fmt: skip
    run(*options)
    folder = tmp_path / "sequential-seed0"
    before = json.loads((folder / "result.json").read_text())
    tables = [pd.read_csv(folder / f"train-{phase}.csv") for phase in (0, 1)]
    for table in tables:
        assert 3 <= len(table) <= 11
        assert table["seconds"].iloc[-1] >= 1.0 > table["seconds"].iloc[-2]
    (folder / "result.json").unlink()
    run(*options, "--resume")
    after = json.loads((folder / "result.json").read_text())
    for name in ("steps", "tokens", "seconds"):
        assert after[name] == before[name]
    assert after["trained"] == pytest.approx(before["trained"])


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


def test_padded_batches_train_as_packed_ones_do(finished, inputs, tmp_path):
    out = finished[0]
    run(*inputs, "--no-pack", "--method", "pbgd-free", "--out", tmp_path)
    tables, weights = results(tmp_path, "pbgd-free")
    wanted_tables, wanted_weights = results(out, "pbgd-free")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, wanted_tables[name], rtol=0, atol=1e-5)
    for name, weight in weights.items():
        assert float((weight - wanted_weights[name]).abs().max()) < 1e-4


# Several processes ------------------------------------------------------------------------------


def results(out, method):
    """Held-out losses along a run, and what was saved; without times."""
    folder = out / f"{method}-seed0"
    tables = {
        place.name: pd.read_csv(place).drop(columns=["seconds", "perplexity"])
        for place in (*folder.glob("train-[0-9].csv"), *folder.glob("post-sft.csv"))
    }
    return tables, load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """One process on batches of 8."""
    out = tmp_path_factory.mktemp("alone")
    run(*inputs, "--method", "pbgd-free", "sequential", "--batch", 8, "--diagnostics", 0,
        "--out", out)  # fmt: skip
    return out


@pytest.mark.parametrize("wrapping", [[], ["--shard"]], ids=["ddp", "fsdp"])
def test_two_processes_give_the_result_of_one_on_the_same_global_batch(
    alone, inputs, wrapping, tmp_path
):
    printed = run(*inputs, "--method", "pbgd-free", "sequential", "--batch", 4, "--diagnostics", 0,
                  *wrapping, "--out", tmp_path, processes=2)  # fmt: skip
    assert printed.count("== pbgd-free, seed 0") == printed.count("everything is in") == 1
    for method in ("pbgd-free", "sequential"):
        tables, weights = results(tmp_path, method)
        wanted_tables, wanted_weights = results(alone, method)
        assert tables.keys() == wanted_tables.keys()
        for name, table in tables.items():
            pd.testing.assert_frame_equal(table, wanted_tables[name], rtol=0, atol=1e-5)
        assert weights.keys() == wanted_weights.keys()
        for name, weight in weights.items():
            assert float((weight - wanted_weights[name]).abs().max()) < 1e-5


def test_two_processes_that_are_ended_go_on_bit_for_bit(inputs, tmp_path):
    options = [*inputs, "--method", "pbgd-free", "--batch", 4, "--steps", 30, "--stage", "train",
               "--diagnostics", 0, "--evaluate-every", 1]  # fmt: skip
    run(*options, "--out", tmp_path / "whole", processes=2)
    out = tmp_path / "ended"
    checkpoint = out / "pbgd-free-seed0" / "train-0.pt.rank0"
    with subprocess.Popen(
        command(*options, "--out", out, processes=2),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as torchrun:  # fmt: skip
        while not checkpoint.is_file() and torchrun.poll() is None:
            time.sleep(0.02)
        torchrun.send_signal(signal.SIGTERM)
    assert checkpoint.is_file()
    assert not (out / "pbgd-free-seed0" / "result.json").is_file()
    assert "had processes=2 and not 1" in run(*options, "--resume", "--out", out, code=1)
    run(*options, "--resume", "--out", out, processes=2)
    tables, weights = results(out, "pbgd-free")
    wanted_tables, wanted_weights = results(tmp_path / "whole", "pbgd-free")
    pd.testing.assert_frame_equal(tables["train-0.csv"], wanted_tables["train-0.csv"])
    assert all(weight.equal(wanted_weights[name]) for name, weight in weights.items())


def test_a_budget_of_time_ends_all_processes_at_one_step(inputs, tmp_path):
    run(*inputs, "--method", "dpo", "--stage", "train", "--batch", 4, "--time-budget", 0.5,
        "--diagnostics", 0, "--out", tmp_path, processes=2)  # fmt: skip
    folder = tmp_path / "dpo-seed0"
    steps = {int(torch_load(place)["state"]["step"]) for place in folder.glob("train-0.pt.rank?")}
    assert steps == {json.loads((folder / "result.json").read_text())["steps"]}
    assert len(list(folder.glob("train-0.pt.rank?"))) == 2


def torch_load(place):
    import torch

    return torch.load(place, weights_only=True)


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        (["--shard"], 1, "use torchrun"),
        (["--method", "bome"], 2, "are for one process"),
        (["--diagnostics", 2], 2, "are for one process"),
    ],
)
def test_what_needs_another_number_of_processes_is_refused(options, processes, message, tmp_path):
    code = 2 if processes == 1 else 1
    assert message in run(*options, "--out", tmp_path, code=code, processes=processes)
