"""Fine-tuning on two processes is that on one, and a killed run goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuning_worker import CASES, run

WORKER = Path(__file__).with_name("finetuning_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(WORKER), "two", str(folder)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize(("method", "wrapping"), CASES)
def test_two_processes_train_as_one_does_on_the_same_global_batch(folder, method, wrapping):
    weights, history = run(method)
    for rank in (0, 1):
        found = torch.load(folder / f"{method}.{wrapping}.rank{rank}")
        for one, other in zip(weights, found["weights"], strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
        for loss in ("upper", "lower"):
            assert found["history"][loss] == pytest.approx(
                history[loss].tolist(), abs=1e-5, nan_ok=True
            )


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    killed = subprocess.run(
        [sys.executable, str(WORKER), "killed", str(tmp_path)], env=ENVIRONMENT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    weights, history = run("pbgd-free")
    resumed, rest = run("pbgd-free", resume=tmp_path / "killed.pt")
    for one, other in zip(weights, resumed, strict=True):
        assert torch.equal(one, other)
    assert rest["lower"].tolist() == history["lower"].tolist()
