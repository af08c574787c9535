"""What a step of LLM fine-tuning costs, against the two halves of it written by hand.

The arms take the same batches in one process, in turns; a step's time is the median over all
rounds. By hand means: the features of the instructions without a graph and a step of the head on
them (SFT); the features of the preferences with one, and a step of the LoRA weights (DPO).
PBGD-Free has more to do: its head also follows the preferences, which takes the head's forward and
backward pass on them once more.

Records are random tokens, all of one length, so that no arm can gain by leaving padding out; or
those of the embedded corpus, which shows what packing saves.

    python benchmarks/llm_cost.py
    python benchmarks/llm_cost.py --records library --batch 16 --length 128
    python benchmarks/llm_cost.py --preset 1b --batch 8 --length 512 --bf16
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bilevel.problems.llm import (
    FineTuningOptions,
    TokenBatch,
    TokenLoader,
    Tokens,
    TwoLevelModel,
    dpo_loss,
    finetuning_problem,
    library_corpus,
    sequence_log_probabilities,
    sft_loss,
    small_model,
    token_log_probabilities,
    tokenize,
    train_tokenizer,
)

PRESETS = {
    "small": ("llama", 2048, 256, 6, 4),
    "160m": ("gpt_neox", 50304, 768, 12, 12),
    "1b": ("llama", 50304, 2048, 16, 16),
}  # family, vocabulary, hidden size, layers, heads
SFT, DPO, PACKED = "head-only SFT by hand", "DPO by hand", "pbgd-free, packed"
METHODS = ("pbgd-free", "pbgd", "bome")

Step = Callable[[int], None]


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    make = library_batches if args.records == "library" else equal_batches
    padded, packed = make(args, device, None), make(args, device, args.length)
    rows: dict[str, dict] = {name: {"times": []} for name in (SFT, DPO, *METHODS, PACKED)}
    for _ in range(args.rounds):
        for name, row in rows.items():
            measure(row, name, args, device, *(packed if name == PACKED else padded))
    table = summarise(rows, args, padded, packed, device)
    print(table.to_string(float_format=lambda value: f"{value:.3g}"))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "cost.csv")
    (args.out / "cost.json").write_text(json.dumps({
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "rows": table.reset_index().to_dict("records"),
    }, indent=1))  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--preset", choices=PRESETS, default="small", help="default: %(default)s")
    option("--batch", type=int, default=4, help="records of each kind (default: %(default)s)")
    option("--length", type=int, default=256, help="tokens of a record, half of them the prompt's "
           "(default: %(default)s)")  # fmt: skip
    option("--records", choices=("equal", "library"), default="equal",
           help="random tokens of one length, or the embedded corpus cut at --length (default: "
           "%(default)s)")  # fmt: skip
    option("--steps", type=int, default=8, help="timed steps a round (default: %(default)s)")
    option("--warm-up", type=int, default=2, help="steps before them (default: %(default)s)")
    option("--rounds", type=int, default=3, help="default: %(default)s")
    option("--inner-steps", type=int, default=3, help="of pbgd and bome (default: %(default)s)")
    option("--bf16", action="store_true", help="model in bfloat16, mixed precision")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    option("--peak-tflops", type=float, default=989.0,
           help="of the device (default: %(default)s, an H100's or H200's dense bf16)")  # fmt: skip
    option("--out", type=Path, default=Path("results/llm_cost"))
    return parser.parse_args()


def equal_batches(
    args: argparse.Namespace, device: torch.device, row_length: int | None
) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """Random tokens, half of them the prompt's."""
    generator = torch.Generator().manual_seed(0)
    size = PRESETS[args.preset][1]

    def batches(responses: int) -> list[TokenBatch]:
        shape = (2, responses * args.batch, args.length)
        ids = torch.randint(1, size, shape, generator=generator).tolist()
        return [
            TokenBatch.of(
                [Tokens(tuple(row), args.length // 2) for row in rows], row_length=row_length
            ).to(device)
            for rows in ids
        ]

    reference = torch.zeros(2 * args.batch, device=device)
    preferences = [dataclasses.replace(batch, reference=reference) for batch in batches(2)]
    return preferences, batches(1)


def library_batches(
    args: argparse.Namespace, device: torch.device, row_length: int | None
) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """As many of the embedded corpus as --steps asks for, in random order."""
    count = args.batch * args.steps
    corpus = library_corpus(count, count, 1)
    tokenizer = train_tokenizer(corpus.texts)
    preferences, instructions = (
        tokenize(records, tokenizer, args.length)
        for records in (corpus.preferences, corpus.instructions)
    )
    more = {"seed": 0, "device": device, "row_length": row_length}
    return (
        [*TokenLoader(preferences, args.batch, reference=torch.zeros(count, 2), **more)],
        [*TokenLoader(instructions, args.batch, **more)],
    )


def make_model(args: argparse.Namespace, device: torch.device) -> TwoLevelModel:
    with device:
        causal = small_model(*PRESETS[args.preset], context=args.length)
    causal = causal.to(torch.bfloat16 if args.bf16 else torch.float32)
    return TwoLevelModel(causal, autocast=torch.bfloat16 if args.bf16 else None)


def hand_written(
    name: str, args: argparse.Namespace, model: TwoLevelModel, preferences: list, instructions: list
) -> Step:
    """The plain step, as one would write it for this one purpose."""
    adam = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
    device = model.device.type
    leaves = [model.weight] if name == SFT else list(model.lora.values())
    optimizer = torch.optim.AdamW(leaves, **adam)

    def loss(number: int) -> Tensor:
        if name == SFT:
            batch = instructions[number % len(instructions)]
            with torch.no_grad():
                hidden = model.features(batch)
            return sft_loss(token_log_probabilities(hidden, model.weight, batch.targets))
        batch = preferences[number % len(preferences)]
        head = model.weight.detach()
        tokens = token_log_probabilities(model.features(batch), head, batch.targets)
        return dpo_loss(sequence_log_probabilities(tokens, batch.lengths), batch.reference)

    def step(number: int) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
            value = loss(number)
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def solver_step(
    name: str, args: argparse.Namespace, model: TwoLevelModel, preferences: list, instructions: list
) -> Step:
    options = FineTuningOptions(lr=1e-5, head_lr=1e-5, inner_steps=args.inner_steps)
    (solver,) = options.solvers(name.partition(",")[0])
    problem = finetuning_problem(model)
    state = solver.init(problem, model.lora, model.weight)

    def step(number: int) -> None:
        batches = (each[number % len(each)] for each in (preferences, instructions))
        solver.step(problem, state, *batches)

    return step


def measure(
    row: dict, name: str, args: argparse.Namespace, device: torch.device, preferences: list,
    instructions: list,
) -> None:  # fmt: skip
    model = make_model(args, device)
    make = hand_written if name in (SFT, DPO) else solver_step
    step = make(name, args, model, preferences, instructions)
    if "tflop" not in row:
        with FlopCounterMode(display=False) as counter:
            step(0)
        row["tflop"] = counter.get_total_flops() / 1e12
    for number in range(args.warm_up):
        step(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for number in range(args.steps):
        began = now(device)
        step(number)
        row["times"].append(now(device) - began)
    if device.type == "cuda":
        row["memory"] = torch.cuda.max_memory_allocated() / 2**30
    del step, model
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
    rows: dict[str, dict], args: argparse.Namespace, padded: tuple, packed: tuple,
    device: torch.device,
) -> pd.DataFrame:  # fmt: skip
    def seconds(name: str) -> float:
        return statistics.median(rows[name]["times"])

    def mean(batches: list[TokenBatch], attribute: str) -> float:
        """Of a batch: its tokens (mask), or the places for them (ids)."""
        sizes = [getattr(each, attribute).count_nonzero() if attribute == "mask" else
                 each.ids.numel() for each in batches]  # fmt: skip
        return float(sum(sizes)) / len(sizes)

    levels = {SFT: (1,), DPO: (0,)}
    table = []
    for name, row in rows.items():
        batches = packed if name == PACKED else padded
        tokens, places = (
            sum(mean(batches[level], attribute) for level in levels.get(name, (0, 1)))
            for attribute in ("mask", "ids")
        )
        entry = {
            "arm": name,
            "ms a step": 1e3 * seconds(name),
            "of SFT + DPO by hand": seconds(name) / (seconds(SFT) + seconds(DPO)),
            "TFLOP of them": row["tflop"] / (rows[SFT]["tflop"] + rows[DPO]["tflop"]),
            "tokens/s": tokens / seconds(name),
            "padding": 1.0 - tokens / places,
            "TFLOP/s": row["tflop"] / seconds(name),
        }
        if device.type == "cuda":
            entry["share of peak"] = entry["TFLOP/s"] / args.peak_tflops
            entry["peak GiB"] = row["memory"]
        table.append(entry)
    return pd.DataFrame(table).set_index("arm")


if __name__ == "__main__":
    main()
