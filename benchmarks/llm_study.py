"""Methods of LLM fine-tuning on held-out records, at equal budgets of time.

A small model, pretrained on the documentation of Python's standard library (see
bilevel.problems.llm.library), is fine-tuned by every method for the same time: seconds of the CPU's
own clock, of the wall's on a GPU, evaluation not counted. Each method's learning rate is the one of
--lrs that does best on validation records (the sum of both losses, seed 0); the seeds after it then
run with that rate, and are scored on test records. Then the head alone is fine-tuned on further
instructions.

    python benchmarks/llm_study.py --budget 40 --post-budget 10 --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path

import pandas as pd
import torch
from kept_results import kept_lines, require_same_options

from bilevel.callbacks import Callback
from bilevel.problems.llm import (
    METHODS,
    FineTuningOptions,
    ResponseDiagnostics,
    TokenLoader,
    TwoLevelModel,
    evaluate,
    finetune,
    library_corpus,
    reference_log_probabilities,
    small_base,
    tokenize,
)

CONTEXT = 128


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    require_same_options(args.out, args, free={"method", "seeds", "lrs", "out"})
    study = Study(args)
    tested = []
    for method in args.method:
        rates = {rate: study.run(method, rate, 0, on="validation") for rate in args.lrs}
        best = min(rates, key=lambda rate: rates[rate]["dpo_loss"] + rates[rate]["sft_loss"])
        tested += [study.run(method, best, seed, on="test") for seed in range(1, args.seeds + 1)]
    report(args, study, tested)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--method", choices=METHODS, nargs="+", default=list(METHODS))
    option("--seeds", type=int, default=3, help="default: %(default)s")
    option("--budget", type=float, default=40.0, help="seconds (default: %(default)s)")
    option("--post-budget", type=float, default=10.0, help="seconds (default: %(default)s)")
    option("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3],
           help="of backbone and head (default: 3e-4 1e-3 3e-3)")  # fmt: skip
    option("--penalty", type=float, default=10.0, help="default: %(default)s")
    option("--batch", type=int, default=16, help="default: %(default)s")
    option("--records", type=int, default=800, help="of each kind (default: %(default)s)")
    option("--base-steps", type=int, default=400, help="of pretraining (default: %(default)s)")
    option("--threads", type=int, default=1, help="default: %(default)s")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    option("--out", type=Path, default=Path("results/llm_study"))
    return parser.parse_args()


class Budget(Callback):
    """Ends a run when its time is over; diagnostics at its start, middle and end do not count."""

    def __init__(self, seconds: float, device: str, diagnostics=None) -> None:
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.began, self.seconds = self.clock(), seconds
        self.diagnostics = diagnostics
        self.marks = [0.0, 0.5 * seconds]

    def used(self) -> float:
        return self.clock() - self.began

    def on_step(self, run) -> None:
        if self.marks and self.used() > self.marks[0]:
            self.marks.pop(0)
            self._measure(run)

    def _measure(self, run) -> None:
        if self.diagnostics is not None:
            before = self.clock()
            self.diagnostics.measure(run)
            self.began += self.clock() - before

    def on_log(self, run, record) -> bool:
        return self.used() > self.seconds

    def on_end(self, run) -> None:
        self._measure(run)


class Study:
    """The corpus, the base model, and runs of methods on them; results are kept as they come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        corpus = library_corpus(args.records, args.records, 300)
        self.base = args.out / f"base-{args.base_steps}-{corpus.digest}"
        _, tokenizer = small_base(
            self.base, corpus.texts, steps=args.base_steps, device=args.device
        )
        parts = (corpus.preferences, corpus.instructions, corpus.later_instructions,
                 corpus.test_preferences, corpus.test_instructions)  # fmt: skip
        items = [tokenize(part, tokenizer, CONTEXT) for part in parts]
        self.preferences, self.instructions, self.later = items[:3]
        self.held_out = {
            "validation": (items[3][:100], items[4][:100]),
            "test": (items[3][100:], items[4][100:]),
        }
        model = self._model(0)
        self.references = {
            id(pairs): reference_log_probabilities(model, pairs, 50)
            for pairs in (self.preferences, *(pairs for pairs, _ in self.held_out.values()))
        }
        self.place = args.out / "results.jsonl"
        self.results = kept_lines(self.place)
        self.start = {on: self._score(model, on) for on in self.held_out}

    def _model(self, seed: int) -> TwoLevelModel:
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.base)
        return TwoLevelModel(base.to(self.args.device), seed=seed)

    def _loader(self, items, seed=None) -> TokenLoader:
        batch = self.args.batch if seed is not None else 50
        reference = self.references.get(id(items))
        return TokenLoader(items, batch, seed=seed, reference=reference, device=self.args.device)

    def _score(self, model: TwoLevelModel, on: str) -> dict:
        return dataclasses.asdict(evaluate(model, *map(self._loader, self.held_out[on])))

    def run(self, method: str, rate: float, seed: int, on: str) -> dict:
        """Scores of one run, or what an earlier call found."""
        key = {"method": method, "lr": rate, "seed": seed, "on": on}
        for found in self.results:
            if all(found[name] == value for name, value in key.items()):
                return found
        args, model = self.args, self._model(seed)
        options = FineTuningOptions(lr=rate, head_lr=rate, penalty=args.penalty, seed=seed)
        preferences = self._loader(self.preferences, seed)
        instructions = self._loader(self.instructions, seed)
        diagnostics = None
        if method == "pbgd-free" and on == "test":
            sample = ([next(iter(loader))] for loader in (preferences, instructions))
            diagnostics = ResponseDiagnostics(model, *sample, args.penalty, every=1, lr=1e-3)
        solvers, steps = options.solvers(method), 0
        for solver in solvers:
            budget = Budget(args.budget / len(solvers), args.device, diagnostics)
            steps += self._train(model, solver, preferences, instructions, budget)
        result = {**key, "steps": steps, **self._score(model, on)}
        if on == "test":
            (solver,) = options.solvers("sft")
            budget = Budget(args.post_budget, args.device)
            later = self._loader(self.later, seed)
            post = {"steps": self._train(model, solver, preferences, later, budget)}
            post |= self._score(model, on)
            seen = evaluate(model, self._loader(self.held_out[on][0]), self._loader(self.later))
            result["post"] = {**post, "train_sft_loss": seen.sft_loss}
        if diagnostics is not None:
            result["diagnostics"] = diagnostics.points.to_dict("records")
        self.results.append(result)
        with self.place.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print({name: value for name, value in result.items() if name != "diagnostics"}, flush=True)
        return result

    @staticmethod
    def _train(model, solver, preferences, instructions, budget) -> int:
        solution = finetune(
            model, solver, preferences, instructions, 10**6, callbacks=[budget], log_every=1,
            progress=False,
        )  # fmt: skip
        return solution.steps


def report(args: argparse.Namespace, study: Study, tested: list[dict]) -> None:
    rows = []
    for found in tested:
        post = {f"post {name}": value for name, value in found["post"].items()}
        rest = {k: v for k, v in found.items() if k not in ("post", "diagnostics", "on")}
        rows.append({**rest, **post})
    table = pd.DataFrame(rows).groupby("method", sort=False)
    spread = table.std().drop(columns=["seed", "lr"]).add_suffix(" sd")
    summary = table.mean().join(spread)
    print("start", study.start["test"])
    print(summary.drop(columns="seed").T.to_string(float_format=lambda value: f"{value:.4g}"))
    summary.to_csv(args.out / "table.csv")
    (args.out / "study.json").write_text(json.dumps({
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.processor(),
        "torch": torch.__version__,
        "start": study.start,
        "results": study.results,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
