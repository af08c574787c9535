"""What a pretraining step of BiRQ costs, with and without the gradient through its labels.

The arms train on the same batches in one process, one after another, in several rounds; a step's
time is the median over all rounds. The floors follow from the layers that a step passes forwards
and backwards: with K layers, labels from layer k, and a backward pass at twice the cost of a
forward one, BiRQ takes 1 + k / K of BEST-RQ's time, and with detached labels 1 + k / (3 K).

    python benchmarks/birq_cost.py --preset tiny --batch 16 --seconds 1.6
    python benchmarks/birq_cost.py --preset c2 --batch 64 --seconds 12 --bf16 --compile
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bounds import device, number
from torch.utils.flop_counter import FlopCounterMode

from bilevel.problems.speech import (
    PRESETS,
    PretrainingLosses,
    PretrainingOptions,
    SpeechInputs,
    SpeechModel,
    pretraining_problem,
)

ARMS = {
    "BEST-RQ": ("best-rq", "detached"),
    "BiRQ, detached labels": ("birq", "detached"),
    "BiRQ": ("birq", "full"),
}


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    place = torch.device(args.device)
    batches = make_batches(args, place)
    rows: dict[str, dict] = {name: {"times": []} for name in ARMS}
    for _ in range(args.rounds):
        for name, (method, target_gradient) in ARMS.items():
            measure(rows[name], args, place, batches, method, target_gradient)
    table = summarise(rows, args, batches, place)
    print(table.to_string(float_format=lambda value: f"{value:.3g}"))
    table.to_csv(args.out / "cost.csv")
    (args.out / "cost.json").write_text(json.dumps({
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "device": torch.cuda.get_device_name() if place.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "rows": table.reset_index().to_dict("records"),
    }, indent=1))  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option, count = parser.add_argument, number(int, 1)
    option("--preset", choices=PRESETS, default="tiny", help="default: %(default)s")
    option("--batch", type=count, default=16, help="utterances (default: %(default)s)")
    option("--seconds", type=number(float, 0.04), default=1.6,
           help="of each (default: %(default)s)")  # fmt: skip
    option("--steps", type=count, default=20, help="timed steps a round (default: %(default)s)")
    option("--warm-up", type=number(int, 0), default=5,
           help="steps before them (default: %(default)s)")  # fmt: skip
    option("--rounds", type=count, default=3, help="default: %(default)s")
    option("--bf16", action="store_true", help="mixed precision")
    option("--compile", action="store_true", help="torch.compile each layer")
    available = "cuda" if torch.cuda.is_available() else "cpu"
    option("--device", type=device, default=available, help="default: %(default)s")
    option(
        "--peak-tflops",
        type=number(float, 1e-3),
        default=989.0,
        help="of the device, for the share of peak (default: %(default)s, dense bf16 H100/H200)",
    )
    option("--out", type=Path, default=Path("results/birq_cost"))  # fmt: skip
    return parser.parse_args()


def make_batches(args: argparse.Namespace, device: torch.device) -> list[SpeechInputs]:
    frames = int(args.seconds * 100) // 4 * 4
    generator = torch.Generator(device).manual_seed(0)
    counts = np.full(args.batch, frames)
    return [
        SpeechInputs.of(
            torch.randn(args.batch, frames, 80, generator=generator, device=device),
            counts,
            range(args.batch * i, args.batch * (i + 1)),
        )
        for i in range(4)
    ]


def measure(
    row: dict,
    args: argparse.Namespace,
    device: torch.device,
    batches: list[SpeechInputs],
    method: str,
    target_gradient: str,
) -> None:
    torch.manual_seed(0)
    options = PRESETS[args.preset]
    labels = dataclasses.replace(options.labels, target_gradient=target_gradient)
    model = SpeechModel(dataclasses.replace(options, labels=labels)).to(device)
    if args.compile:
        model.encoder.compile_layers()
    losses = PretrainingLosses(model, method).train()
    solver = PretrainingOptions(
        steps=10_000, autocast=torch.bfloat16 if args.bf16 else None
    ).solver()
    problem = pretraining_problem(losses)
    state = solver.init(problem, (), dict(losses.named_parameters()))
    if "tflop" not in row:
        # Counted without compilation, which hides the operators.
        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            solver.step(problem, state, None, batches[0])
        row["tflop"] = counter.get_total_flops() / 1e12
    for i in range(args.warm_up):
        solver.step(problem, state, None, batches[i % len(batches)])
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for i in range(args.steps):
        began = now(device)
        solver.step(problem, state, None, batches[i % len(batches)])
        row["times"].append(now(device) - began)
    if device.type == "cuda":
        row["memory"] = torch.cuda.max_memory_allocated() / 2**30
    del state, losses, model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def now(device: torch.device) -> float:
    """Wall time once the GPU is done; CPU time without one."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def summarise(
    rows: dict[str, dict], args: argparse.Namespace, batches: list[SpeechInputs],
    device: torch.device,
) -> pd.DataFrame:  # fmt: skip
    options = PRESETS[args.preset]
    share = options.labels.layer / options.encoder.layers
    floors = dict(zip(ARMS, (1.0, 1 + share / 3, 1 + share), strict=True))
    first = rows["BEST-RQ"]
    tokens = float(batches[0].lengths.sum())
    table = []
    for name, row in rows.items():
        seconds = statistics.median(row["times"])
        entry = {
            "arm": name,
            "ms a step": 1e3 * seconds,
            "ratio": seconds / statistics.median(first["times"]),
            "floor": floors[name],
            "encoder frames/s": tokens / seconds,
            "TFLOP a step": row["tflop"],
            "TFLOP/s": row["tflop"] / seconds,
        }
        if device.type == "cuda":
            entry["share of peak"] = entry["TFLOP/s"] / args.peak_tflops
            entry["peak GiB"] = row["memory"]
            entry["memory ratio"] = row["memory"] / first["memory"]
        table.append(entry)
    return pd.DataFrame(table).set_index("arm")


if __name__ == "__main__":
    main()
