"""Fine-tunes in one of several processes, or until it is killed (see ``main``)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import instructions, preferences, two_levels
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bilevel.callbacks import Callback, Checkpoint
from bilevel.problems.llm import (
    FineTuningOptions,
    TokenLoader,
    finetune,
    reference_log_probabilities,
)

STEPS = 4
CASES = [
    (method, wrapping)
    for method in ("pbgd-free", "pbgd", "alright")
    for wrapping in ("ddp", "fsdp")
]  # fmt: skip


class Kill(Callback):
    """Ends the process without warning."""

    def on_step(self, run):
        if run.state.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def run(method, wrapping=None, batch=8, **more):
    model = two_levels(dtype=torch.float32)
    reference = reference_log_probabilities(model, preferences())
    if wrapping == "ddp":
        model.backbone = DistributedDataParallel(model.backbone)
    elif wrapping == "fsdp":
        for layer in model.backbone.layers:
            fully_shard(layer)
        fully_shard(model.backbone)
    (solver,) = FineTuningOptions(lr=1e-3, head_lr=1e-3).solvers(method)
    solution = finetune(
        model,
        solver,
        TokenLoader(preferences(), batch, seed=0, reference=reference),
        TokenLoader(instructions(), batch, seed=0),
        STEPS,
        log_every=1,
        progress=False,
        **more,
    )
    whole = [p.full_tensor() if wrapping == "fsdp" else p for p in model.lora.values()]
    return [each.detach().clone() for each in (*whole, model.weight)], solution.history


def main(mode, folder):
    if mode == "killed":
        run("pbgd-free", callbacks=[Checkpoint(folder / "killed.pt", every=2), Kill()])
        return
    dist.init_process_group("gloo")
    for method, wrapping in CASES:
        weights, history = run(method, wrapping, batch=4)
        result = {"weights": weights, "history": history[["upper", "lower"]].to_dict("list")}
        torch.save(result, folder / f"{method}.{wrapping}.rank{dist.get_rank()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
