"""The model and its records, and how a method is run for a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchopt import BaseSolver
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from bilevel.callbacks import Callback
from bilevel.problems.llm import (
    FineTuningOptions,
    TokenLoader,
    TwoLevelModel,
    finetune,
    library_corpus,
    reference_log_probabilities,
    small_base,
    tokenize,
)

#: Tokens of a sequence, and of a row of packed ones.
CONTEXT = 128
CACHE = Path(__file__).resolve().parents[1] / "__cache__"


@dataclass(frozen=True)
class Task:
    """A pretrained model, batches to train it on, and records that were held out."""

    base: Path
    seed: int
    preferences: TokenLoader
    instructions: TokenLoader
    test: tuple[TokenLoader, TokenLoader]

    @classmethod
    def make(cls, records: int, tests: int, base_steps: int, batch: int, seed: int) -> Task:
        """The embedded model and corpus; the model is pretrained once, then read from disk."""
        logging.disable_progress_bar()
        corpus = library_corpus(records, records, tests)
        base = CACHE / f"base-{base_steps}-{corpus.digest}"
        model, tokenizer = small_base(base, corpus.texts, steps=base_steps)
        parts = (corpus.preferences, corpus.instructions, corpus.test_preferences,
                 corpus.test_instructions)  # fmt: skip
        items = [tokenize(part, tokenizer, CONTEXT) for part in parts]
        model = TwoLevelModel(model, seed=seed)
        known = [reference_log_probabilities(model, each, batch) for each in (items[0], items[2])]

        def loader(items, batch, seed=None, reference=None):
            return TokenLoader(items, batch, seed=seed, reference=reference, row_length=CONTEXT)

        return cls(
            base,
            seed,
            loader(items[0], batch, seed, known[0]),
            loader(items[1], batch, seed),
            (loader(items[2], 50, reference=known[1]), loader(items[3], 50)),
        )

    def model(self) -> TwoLevelModel:
        return TwoLevelModel(AutoModelForCausalLM.from_pretrained(self.base), seed=self.seed)


class Watch(Callback):
    """Scores a model at equal shares of its training time, and ends a phase when that is over."""

    def __init__(self, seconds: float, points: int, score) -> None:
        self.marks = [seconds * (k + 1) / points for k in range(points)]
        self.score = score
        self.end = seconds
        self.steps = 0
        self.began = time.perf_counter()

    @property
    def used(self) -> float:
        return time.perf_counter() - self.began

    def on_step(self, run) -> None:
        self.steps += 1
        passed = [mark for mark in self.marks if mark <= self.used]
        if passed:
            self.marks = self.marks[len(passed) :]
            before = time.perf_counter()
            self.score()
            self.began += time.perf_counter() - before

    def on_log(self, run, record) -> bool:
        return self.used >= self.end


class MethodSolver(BaseSolver):
    """One of ``bilevel.problems.llm.METHODS``, for the same time as the others."""

    method: str
    requirements = ["pip::bilevel[llm]"]

    @property
    def options(self) -> FineTuningOptions:
        own = {name: getattr(self, name) for name in self.parameters if name != "lr"}
        return FineTuningOptions(lr=self.lr, head_lr=self.lr, seed=self.task.seed, **own)

    def set_objective(self, task, seconds, points):
        self.task, self.seconds, self.points = task, seconds, points
        self.model, self.watch = task.model(), None

    def run(self, callback):
        callback()
        self.watch = watch = Watch(self.seconds, self.points, callback)
        phases = self.options.solvers(self.method)
        for number, solver in enumerate(phases, start=1):
            watch.end = self.seconds * number / len(phases)
            finetune(
                self.model, solver, self.task.preferences, self.task.instructions, 10**6,
                callbacks=[watch], log_every=1, progress=False,
            )  # fmt: skip

    def get_result(self):
        return {"model": self.model, "steps": self.watch.steps if self.watch else 0}
