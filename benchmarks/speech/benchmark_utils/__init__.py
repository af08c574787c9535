"""What the solvers share: the protocol of a pretraining run."""

from __future__ import annotations

from dataclasses import replace

from benchopt import BaseSolver

from bilevel.problems.speech import PretrainingOptions
from bilevel.problems.speech.protocol import Protocol


class MethodSolver(BaseSolver):
    """A method of pretraining, from the weights, quantisers and batches of a seed."""

    method: str
    requirements = ["pip::bilevel[speech]"]
    parameters = {"steps": [2000]}
    parameter_template = "{steps} steps"

    def set_objective(self, source, options):
        self.source, self.options = source, options

    def run(self, _):
        self.seed = self.get_seed(use_repetition=True)
        self.model = self.pretrained(self.method)

    def pretrained(self, method, teacher=None):
        protocol = Protocol(pretraining=PretrainingOptions(steps=self.steps, lr=3e-3))
        options = replace(self.options, labels=replace(self.options.labels, seed=self.seed))
        found = protocol.pretrain(
            self.source, options, method, self.seed, teacher=teacher, progress=False
        )
        return found.model

    def get_result(self):
        return {"model": self.model, "seed": self.seed}
