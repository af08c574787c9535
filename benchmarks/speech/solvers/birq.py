from __future__ import annotations

from benchmark_utils import pretrained
from benchopt import BaseSolver


class Solver(BaseSolver):
    """Anchor labels below, labels of the encoder's own layer k above (arXiv:2509.15430)."""

    name = "BiRQ"
    requirements = ["pip::bilevel[speech]"]
    parameters = {"steps": [2000]}
    parameter_template = "{steps} steps"

    def set_objective(self, source, options):
        self.source, self.options = source, options

    def run(self, _):
        seed = self.get_seed(use_repetition=True)
        model = pretrained(self.source, self.options, "birq", self.steps, seed)
        self.result = {"model": model, "seed": seed}

    def get_result(self):
        return self.result
