"""Fine-tune a language model on preferences and instructions at once, as a bilevel problem.

The backbone's LoRA weights x follow the preferences (DPO) through the output head y that
supervised fine-tuning (SFT) on the instructions would give:

  pbgd-free   value-function-free penalty method, one loop (arXiv:2507.20400)
  pbgd        penalty method with both responses of the head
  bome        penalty from the gradients (arXiv:2209.08709)
  alright     a step on one of the two losses, drawn anew each time (arXiv:2410.15483)
  sequential  SFT of the head, then DPO of everything
  dpo, sft    one of them alone

By default the model is a small one, trained here for a minute on the documentation of Python's
standard library; it learns to write a function's summary from its signature, and to prefer the
summary over another sentence of the documentation. For your own, name a model, and data sets or
JSONL files.

    python examples/llm_finetuning.py
    python examples/llm_finetuning.py --model EleutherAI/pythia-1b --max-length 2048 \\
        --preference-data Dahoas/rm-hh-rlhf --sft-data Open-Orca/OpenOrca --records 1800 \\
        --test-records 200 --batch 1 --accumulate 16 --lr 1e-5 --head-lr 1e-5 --bf16
    torchrun --nproc-per-node=8 examples/llm_finetuning.py ... (the same, --accumulate 2)
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from llm_data import Data
from llm_training import Trainer, method_options
from output import write_configuration, write_json
from runs import (
    file_or_name,
    make_folder,
    parse,
    read_result,
    require_least,
    require_same_run,
    start_processes,
)

from bilevel.distributed import gather, rank
from bilevel.errors import BilevelError, OptionError
from bilevel.extras import require
from bilevel.problems.llm import METHODS, TwoLevelModel
from bilevel.problems.llm.records import TEMPLATE

STAGES = ("train", "post-sft", "all")
#: What a resumed run may be given anew.
FREE = {"stage", "method", "seeds", "tensorboard", "device"}
#: What the second stage may be given anew.
OF_THE_HEAD = {"post_steps", "post_time_budget", "head_lr", "sft_data", "evaluate_every", "batch",
               "accumulate", "processes", "shard", "pack", "compile", "diagnostics"}  # fmt: skip
QUICK = {"base_steps": 20, "records": 40, "test_records": 20, "steps": 6, "post_steps": 4,
         "batch": 4, "seeds": 1, "max_length": 64, "diagnostics": 0}  # fmt: skip


def main() -> None:
    args = parse_arguments()
    began = time.perf_counter()
    try:
        require("matplotlib", "plot")
        require("transformers", "llm").utils.logging.disable_progress_bar()
        start_processes(args)
        again = args.stage == "post-sft"
        name = "post-sft.json" if again else "config.json"
        if again:  # on what the first stage left
            require_same_run(args.out, args, FREE | OF_THE_HEAD)
        if args.resume:
            begun = name if (args.out / name).is_file() else "config.json"
            require_same_run(args.out, args, FREE, begun)
        seeds = range(args.seed, args.seed + args.seeds)
        arms = [(method, seed) for seed in seeds for method in args.method]
        # All that may be refused comes before anything is removed.
        method_options(args, args.seed)
        make_folder(args.out)
        data = Data.read(args)
        if args.targets:
            data.model(args, args.seed)
        gather(None)  # all have read what is written now
        if rank() == 0:
            write_configuration(args.out, args, name)
            for method, seed in arms if not args.resume else ():  # nothing of another run stays
                begin_anew(args.out / f"{method}-seed{seed}", args.stage)
        gather(None)  # all see what was written, and what was removed
        for method, seed in arms:
            run_arm(args, data, method, seed)
        if rank() == 0:
            report(args)
            print(f"\n{time.perf_counter() - began:.0f} s; everything is in {args.out}/")
    except (BilevelError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("model and data").add_argument
    data("--model", type=file_or_name,
         help="name or folder of a causal language model (default: a small one)")  # fmt: skip
    data("--family", choices=("llama", "gpt_neox"), default="llama",
         help="of the small model (default: %(default)s)")  # fmt: skip
    data("--base-steps", type=int, default=400,
         help="that the small model is pretrained for (default: %(default)s)")  # fmt: skip
    data("--preference-data", type=file_or_name,
         help="JSONL (prompt, chosen, rejected), or name of a data set")  # fmt: skip
    data("--sft-data", type=file_or_name, help="JSONL (prompt, response), or name of a data set")
    data("--template", default=TEMPLATE.replace("\n", "\\n"),
         help="of JSONL and data sets: what prompts are written into; {} leaves them as they are "
         "(default: %(default)s)")  # fmt: skip
    data("--records", type=int, default=800,
         help="of each kind, of instructions twice (default: %(default)s)")  # fmt: skip
    data("--test-records", type=int, default=200,
         help="of each kind, the next ones, held out (default: %(default)s)")  # fmt: skip
    data("--max-length", type=int, default=128, help="context in tokens (default: %(default)s)")
    data("--drop-long", action="store_true", help="leave out prompts longer than the context")

    what = parser.add_argument_group("what is trained").add_argument
    what("--method", choices=METHODS, nargs="+", default=["pbgd-free", "sequential"],
         help="default: pbgd-free sequential")  # fmt: skip
    what("--stage", choices=STAGES, default="all",
         help="post-sft keeps the backbone that --out holds and trains the head on the second "
         "half of the instructions (default: all)")  # fmt: skip
    what("--seed", type=int, default=0, help="of LoRA and the batches (default: 0)")
    what("--seeds", type=int, default=1, help="how many, from --seed on (default: 1)")
    what("--rank", type=int, default=16, help="of LoRA (default: %(default)s)")
    what("--alpha", type=float, default=16.0, help="of LoRA (default: %(default)s)")
    what("--targets", nargs="+", help="modules to adapt (default: the family's)")

    how = parser.add_argument_group("how").add_argument
    how("--steps", type=int, default=100, help="of the method (default: %(default)s)")
    how("--post-steps", type=int, default=50, help="of the second stage (default: %(default)s)")
    how("--time-budget", type=float, help="seconds of training, in the place of --steps")
    how("--post-time-budget", type=float, help="seconds of the second stage")
    how("--lr", type=float, default=1e-3, help="of the backbone (default: %(default)s)")
    how("--head-lr", type=float, default=1e-3, help="of the head (default: %(default)s)")
    how("--penalty", type=float, default=10.0, help="γ (default: %(default)s)")
    how("--inner-steps", type=int, default=3, help="K of pbgd and bome (default: %(default)s)")
    how("--beta", type=float, default=0.1, help="β of DPO (default: %(default)s)")
    how("--batch", type=int, default=16,
        help="records of each kind a batch, in each process (default: 16)")  # fmt: skip
    how("--accumulate", type=int, default=1, help="batches a step (default: 1)")
    how("--pack", action=argparse.BooleanOptionalAction, default=True,
        help="lay sequences end to end in rows of --max-length, where they do not see one another, "
        "or pad each to the longest: the losses are the same (default: --pack)")  # fmt: skip
    how("--bf16", action="store_true", help="model in bfloat16, mixed precision")
    how("--gradient-checkpointing", action="store_true", help="recompute activations: less memory")
    how("--compile", action="store_true",
        help="compile the backbone's layers: minutes first, for long runs on GPUs")  # fmt: skip
    how("--shard", action="store_true",
        help="with torchrun: divide the backbone's weights among the processes (fully_shard) once "
        "the references are computed; otherwise each holds them all (DDP)")  # fmt: skip
    how("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    how("--evaluate-every", type=int,
        help="steps between scores, and checkpoints (default: ten times a run)")  # fmt: skip
    how("--diagnostics", type=int,
        help="times that flatness and bias are measured along pbgd-free, the last at its end; each "
        "takes as long as 200 steps of the head (default: 3, 0 in several processes)")  # fmt: skip
    how("--tensorboard", action="store_true", help="write logs for TensorBoard")
    how("--resume", action="store_true", help="go on where the last run in --out stood")
    how("--quick", action="store_true", help="a few steps: under a minute")
    how("--out", type=Path, default=Path("results/llm_finetuning"), help="default: %(default)s")
    args = parse(parser, QUICK)
    if (args.preference_data is None) != (args.sft_data is None):
        parser.error("--preference-data and --sft-data go together")
    args.template = args.template.replace("\\n", "\n")
    args.processes = int(os.environ.get("WORLD_SIZE", "1"))
    if args.diagnostics is None:
        args.diagnostics = 3 if args.processes == 1 else 0
    if args.processes > 1 and (args.diagnostics or "bome" in args.method):
        parser.error("--diagnostics and --method bome are for one process: leave them out")
    if args.evaluate_every and (args.time_budget or args.post_time_budget):
        parser.error("--evaluate-every counts steps: with a time budget each tenth of it is scored")
    if args.shard and args.processes == 1:
        parser.error("--shard divides the backbone among several processes: use torchrun")
    counts = ("steps", "post_steps", "seeds", "records", "test_records", "base_steps", "batch",
              "accumulate", "max_length", "evaluate_every", "rank")  # fmt: skip
    require_least(parser, args, seed=0, diagnostics=0, **dict.fromkeys(counts, 1))
    require_least(parser, args, time_budget=1e-3, post_time_budget=1e-3, beta=1e-9, alpha=1e-9)
    return args


# Arms -------------------------------------------------------------------------------------------


def begin_anew(folder: Path, stage: str) -> None:
    """Remove an earlier run's arm, or what its second stage left."""
    result = folder / "result.json"
    if stage != "post-sft":
        shutil.rmtree(folder, ignore_errors=True)
    elif result.is_file():
        numbers = read_result(folder)
        numbers.pop("post", None)
        write_json(result, numbers)
        for each in folder.glob("post-sft*"):
            each.unlink()


def run_arm(args: argparse.Namespace, data: Data, method: str, seed: int) -> None:
    """Train by a method, then the head again, or leave out what an interrupted run finished."""
    folder = args.out / f"{method}-seed{seed}"
    adapter, result = folder / "adapter", folder / "result.json"
    numbers = {"method": method, "seed": seed}
    if result.is_file() and (args.resume or args.stage == "post-sft"):
        require_same_run(folder, args, FREE | OF_THE_HEAD)
        numbers = read_result(folder)
    if args.resume and "trained" in numbers and ("post" in numbers or args.stage == "train"):
        return
    gather(None)  # all have read the result that may be written now
    if rank() == 0:
        print(f"== {method}, seed {seed}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(args.device)
    model = data.model(args, seed)
    trained = args.stage == "post-sft" or (args.resume and "trained" in numbers)
    if trained:
        if not adapter.is_dir() or "trained" not in numbers:
            raise OptionError(f"no finished adapter in {folder}: run --stage train first")
        model.load_pretrained(adapter)
    trainer = Trainer(args, data, model, seed, folder)
    if not trained:
        numbers |= trainer.train(method)
        save(model, adapter, args, data, numbers)
        write_result(folder, args, numbers)
    if args.stage != "train":
        numbers |= trainer.train_head_again()
        save(model, folder / "adapter-post-sft", args, data, numbers)
        write_result(folder, args, numbers)


CARD = """---
base_model: {base}
library_name: peft
tags: [bilevel, dpo, sft, lora]
---

LoRA adapter of the backbone (trained on preferences) and output head (on instructions), by the
method {method} of the package `bilevel`, in {steps} steps and {seconds:.0f} s{phase}.

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS FOLDER")

Held out: DPO loss {dpo_loss:.4f} (β = {beta}), preference accuracy {preference_accuracy:.3f},
SFT loss {sft_loss:.4f} nats a token. Prompts: {template!r}.
"""


def save(model: TwoLevelModel, folder: Path, args, data: Data, numbers: dict) -> None:
    """Adapter and head in the ecosystem's formats, with a model card."""
    model.save_pretrained(folder)
    if rank() != 0:
        return
    phase = (
        f", then in {numbers['post']['step']} steps of the head alone on further instructions"
        if "post" in numbers
        else ""
    )
    values = {
        **numbers,
        **numbers.get("post", numbers["trained"]),
        "seconds": numbers["seconds"],
        "template": "{}" if args.sft_data is None else args.template,
    }
    card = CARD.format(**values, base=data.base, beta=args.beta, phase=phase)
    (folder / "README.md").write_text(card)


def write_result(folder: Path, args, numbers: dict) -> None:
    if rank() == 0:
        write_configuration(folder, args)
        write_json(folder / "result.json", numbers)


# Report -----------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Table, figures and summary of every arm of these options that --out holds a result of."""
    from llm_report import draw, read_tables, table

    methods: dict[str, list[dict]] = {}
    folders = []
    for method in METHODS:
        for folder in sorted(args.out.glob(f"{method}-seed[0-9]*")):
            seed = folder.name.rpartition("-seed")[2]
            if not (seed.isdecimal() and (folder / "result.json").is_file()):
                continue  # also a copy that somebody keeps there
            try:
                require_same_run(folder, args, FREE | OF_THE_HEAD)
            except OptionError as error:
                print(f"left out: {error}")
                continue
            methods.setdefault(method, []).append(read_result(folder))
            folders.append((method, int(seed), folder))
    summary = {"model": args.model or f"small {args.family}", "device": args.device,
               "methods": methods}  # fmt: skip
    write_json(args.out / "summary.json", summary)
    history, diagnostics = read_tables(folders)
    history.to_csv(args.out / "history.csv", index=False)
    draw(history, diagnostics, args.out)
    print(table(summary))


if __name__ == "__main__":
    main()
