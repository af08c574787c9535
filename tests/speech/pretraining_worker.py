"""Pretrains in one of several processes, or until it is killed (see ``main``)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from signals import inputs, model, rows_of
from torch.nn.parallel import DistributedDataParallel

from bilevel.callbacks import Callback, Checkpoint
from bilevel.problems.speech import PretrainingLosses, PretrainingOptions, pretrain

STEPS = 6
OPTIONS = PretrainingOptions(steps=STEPS, lr=1e-3, anchor_share=0.2)
BATCHES = [
    inputs(rows=4, counts=[96, 60, 96, 80], first=4 * i, seed=i) for i in range(3)
]  # fmt: skip
CASES = {
    "detached": {},
    "full": {"target_gradient": "full"},
    "standardised, two heads": {"normalisation": "standardise", "prediction_heads": 2},
}


class Kill(Callback):
    """Ends the process without warning."""

    def on_step(self, run):
        if run.state.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def run(name, wrap=None, rows=(0, 1, 2, 3), **more):
    losses = PretrainingLosses(model(**CASES[name]))
    batches = [rows_of(batch, rows) for batch in BATCHES]
    solution = pretrain(
        losses, batches, OPTIONS, wrapper=wrap and wrap(losses), log_every=1, progress=False, **more
    )
    return [each.detach() for each in losses.parameters()], solution.history


def main(mode, folder):
    if mode == "killed":
        checkpoint = Checkpoint(folder / "killed.pt", every=2)
        run("detached", callbacks=[checkpoint, Kill()])
        return
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = [(0, 3), (1, 2)][rank]  # a process's share, in another order than the batch's
    for name in CASES:
        parameters, history = run(name, DistributedDataParallel, rows)
        result = {"parameters": parameters, "history": history[["upper", "lower"]].to_dict("list")}
        torch.save(result, folder / f"{name}.rank{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
