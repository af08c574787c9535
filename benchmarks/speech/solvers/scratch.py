from __future__ import annotations

from benchmark_utils import pretrained
from benchopt import BaseSolver


class Solver(BaseSolver):
    """The encoder as it begins."""

    name = "No pretraining"
    requirements = ["pip::bilevel[speech]"]

    def set_objective(self, source, options):
        self.source, self.options = source, options

    def run(self, _):
        seed = self.get_seed(use_repetition=True)
        model = pretrained(self.source, self.options, "scratch", 1, seed)
        self.result = {"model": model, "seed": seed}

    def get_result(self):
        return self.result
