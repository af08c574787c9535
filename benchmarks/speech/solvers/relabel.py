from __future__ import annotations

from benchmark_utils import pretrained
from benchopt import BaseSolver


class Solver(BaseSolver):
    """Labels from layer k of a finished BEST-RQ encoder, trained here first, as HuBERT has them."""

    name = "Relabelling"
    requirements = ["pip::bilevel[speech]"]
    parameters = {"steps": [2000]}
    parameter_template = "{steps} steps"

    def set_objective(self, source, options):
        self.source, self.options = source, options

    def run(self, _):
        seed = self.get_seed(use_repetition=True)
        teacher = pretrained(self.source, self.options, "best-rq", self.steps, seed)
        model = pretrained(self.source, self.options, "relabel", self.steps, seed, teacher)
        self.result = {"model": model, "seed": seed}

    def get_result(self):
        return self.result
