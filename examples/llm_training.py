"""The phases of an arm of llm_finetuning.py, and what is kept along them."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from llm_data import Data, first_then_others
from output import peak_memory, write_csv
from torch.distributed.fsdp import fully_shard

from bilevel import checkpoints
from bilevel.callbacks import Callback, Checkpoint, TensorBoard
from bilevel.distributed import averaging, gather, rank, world_size
from bilevel.problems.llm import (
    FineTuningOptions,
    ResponseDiagnostics,
    TokenLoader,
    TwoLevelModel,
    evaluate,
    finetune,
    reference_log_probabilities,
)


def method_options(args: argparse.Namespace, seed: int) -> FineTuningOptions:
    return FineTuningOptions(
        lr=args.lr, head_lr=args.head_lr, penalty=args.penalty, inner_steps=args.inner_steps,
        accumulate=args.accumulate, seed=seed,
    )  # fmt: skip


def distribute(model: TwoLevelModel, shard: bool) -> None:
    """Make the processes train one backbone."""
    if world_size() == 1:
        return
    if shard:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model.backbone)
    else:
        model.backbone = averaging(model.backbone)


class Trainer:
    """The phases of one arm on its data."""

    def __init__(self, args, data: Data, model: TwoLevelModel, seed: int, folder: Path) -> None:
        self.args, self.model, self.folder = args, model, folder
        self.options = method_options(args, seed)
        reference, test_reference = (
            first_then_others(
                lambda items=items: reference_log_probabilities(
                    model, items, args.batch, cache=args.out / "reference"
                )
            )
            for items in (data.preferences, data.test_preferences)
        )
        if args.compile:
            model.compile_layers()
        distribute(model, args.shard)

        def loader(items, seed=None, reference=None):
            return TokenLoader(
                items, args.batch, seed=seed, reference=reference, device=args.device,
                accumulate=args.accumulate, row_length=args.max_length if args.pack else None,
            )  # fmt: skip

        self.preferences = loader(data.preferences, seed, reference)
        self.instructions = loader(data.instructions, seed)
        self.later_instructions = loader(data.later_instructions, seed)
        self.test = (
            loader(data.test_preferences, reference=test_reference),
            loader(data.test_instructions),
        )
        self.seen = loader(data.later_instructions)

    def score(self, head: torch.Tensor) -> dict:
        found = evaluate(self.model, *self.test, beta=self.args.beta, head=head)
        return {**dataclasses.asdict(found), "perplexity": found.perplexity}

    def train(self, method: str) -> dict:
        """The method's phases; held-out losses before and after."""
        solvers = self.options.solvers(method)
        first, found = None, {"step": 0, "tokens": 0, "seconds": 0.0}
        for phase, solver in enumerate(solvers):
            observer = self._run(
                solver, self.instructions, f"train-{phase}",
                max(1, self.args.steps // len(solvers)),
                self.args.time_budget and self.args.time_budget / len(solvers),
                self.args.diagnostics if method == "pbgd-free" else 0,
            )  # fmt: skip
            first = first or observer.rows[0]
            for name in found:
                found[name] += observer.rows[-1][name]
        return {
            "steps": found.pop("step"),
            **found,
            "peak_memory_bytes": peak_memory(self.args.device),
            "start": first,
            "trained": observer.rows[-1],
        }

    def train_head_again(self) -> dict:
        """Supervised fine-tuning of the head alone, on instructions not seen before."""
        (solver,) = self.options.solvers("sft")
        observer = self._run(
            solver, self.later_instructions, "post-sft", self.args.post_steps,
            self.args.post_time_budget, 0,
        )  # fmt: skip
        seen = evaluate(self.model, self.test[0], self.seen, beta=self.args.beta).sft_loss
        return {"post": {**observer.rows[-1], "train_sft_loss": seen}}

    def _run(self, solver, instructions, name, steps, budget, diagnosed) -> Observer:
        args, checkpoint = self.args, self.folder / f"{name}.pt"
        table = self.folder / f"{name}.csv"
        diagnostics = None
        if diagnosed:
            count = max(1, 64 // args.batch)
            sample = ([*itertools.islice(self.preferences, count)],
                      [*itertools.islice(self.instructions, count)])  # fmt: skip
            diagnostics = ResponseDiagnostics(
                self.model, *sample, args.penalty, lr=args.head_lr, beta=args.beta, every=1
            )
        what = (self, table, diagnostics, diagnosed)
        if budget:
            observer = TimedObserver(*what, budget=budget, checkpoint=checkpoint)
            callbacks = [observer]
        else:
            every = args.evaluate_every or max(1, steps // 10)
            observer = SteppedObserver(*what, steps=steps, every=every)
            callbacks = [observer, Checkpoint(checkpoint, every=every)]
        if args.tensorboard:
            callbacks.append(TensorBoard(self.folder / "tensorboard" / name))
        resumed = args.resume and checkpoints.exists(checkpoint)
        if budget:
            steps = gather(step_beyond(budget, table) if resumed else None)[0] or 10**9
        solution = finetune(
            self.model, solver, self.preferences, instructions, steps, beta=args.beta,
            callbacks=callbacks, log_every=10 if budget else max(1, steps // 50),
            resume=checkpoint if resumed else None,
        )  # fmt: skip
        if rank() == 0:
            solution.history.to_csv(self.folder / f"{name}-history.csv", index=False)
        return observer


class Observer(Callback):
    """Held-out losses and diagnostics along a run: their time does not count."""

    def __init__(
        self, trainer: Trainer, table: Path, diagnostics: ResponseDiagnostics | None, diagnosed: int
    ) -> None:
        self.trainer, self.table = trainer, table
        self.diagnostics, self.diagnosed = diagnostics, diagnosed
        self.rows: list[dict] = []
        self.lost = 0.0
        self.tokens = 0
        self.features = trainer.model.features

    def on_start(self, run) -> None:
        step, self.measured = run.state.step, self.table.with_name("diagnostics.csv")
        self.rows = gather(rows_until(step, self.table))[0]
        self.earlier = pd.DataFrame(rows_until(step, self.measured))
        self.done = len(self.earlier["step"].unique()) if len(self.earlier) else 0
        if self.rows:
            self.lost = max(run.elapsed - self.rows[-1]["seconds"], 0.0)
            self.tokens = self.rows[-1]["tokens"] if rank() == 0 else 0
        else:
            self._measure(run)
        self.trainer.model.features = self._counted

    def _counted(self, batch) -> torch.Tensor:
        self.tokens = self.tokens + batch.mask.sum()
        return self.features(batch)

    @contextmanager
    def _paused(self):
        """For what is neither timed nor counted."""
        began, tokens = time.perf_counter(), self.tokens
        yield
        self.tokens = tokens
        self.lost += time.perf_counter() - began

    def on_end(self, run) -> None:
        if not run.failed and self.rows[-1]["step"] != run.state.step:
            self._measure(run)
        self.trainer.model.features = self.features

    def _diagnose(self, run, share: float) -> None:
        """Measure if another of equal parts of the run is over."""
        if self.diagnostics is None or int(share * self.diagnosed + 1e-9) <= self.done:
            return
        with self._paused():
            self.done += 1
            self.diagnostics.measure(run)
            write_csv(self.measured, pd.concat([self.earlier, self.diagnostics.points]))

    def _measure(self, run) -> None:
        seconds = run.seconds - self.lost
        with self._paused():
            tokens = sum(gather(int(self.tokens)))
            numbers = {"step": run.state.step, "tokens": tokens, "seconds": seconds}
            # In several processes the run's head is not the model's before the end.
            self.rows.append({**numbers, **self.trainer.score(run.state.y)})
            if rank() == 0:
                write_csv(self.table, pd.DataFrame(self.rows))


class SteppedObserver(Observer):
    """Looks at a run of so many steps every so often."""

    def __init__(self, *what, steps: int, every: int) -> None:
        super().__init__(*what)
        self.steps, self.every = steps, every

    def on_step(self, run) -> None:
        if run.state.step % self.every == 0:
            self._measure(run)
        self._diagnose(run, run.state.step / self.steps)


class TimedObserver(Observer):
    """Ends the run when its seconds are over; scores and checkpoints come with each tenth.

    The clock is asked with the records, which wait for the device anyway.
    """

    def __init__(self, *what, budget: float, checkpoint: Path) -> None:
        super().__init__(*what)
        self.budget, self.checkpoint = budget, checkpoint

    def on_log(self, run, record) -> bool:
        used = gather(run.seconds - self.lost)[0] / self.budget  # one clock for all
        self._diagnose(run, min(used, 1.0))
        if int(10 * used) > int(10 * self.rows[-1]["seconds"] / self.budget):
            self._measure(run)
            with self._paused():
                run.save(self.checkpoint)
        return used >= 1.0


def step_beyond(budget: float, table: Path) -> int | None:
    """The step at which an earlier run's budget was over, if it was."""
    rows = pd.read_csv(table).to_dict("records") if table.is_file() else []
    return int(rows[-1]["step"]) if rows and rows[-1]["seconds"] >= budget else None


def rows_until(step: int, table: Path) -> list[dict]:
    """What an interrupted run wrote up to its checkpoint; nothing of a run that begins."""
    if step == 0 or not table.is_file():
        return []
    return [row for row in pd.read_csv(table).to_dict("records") if row["step"] <= step]
