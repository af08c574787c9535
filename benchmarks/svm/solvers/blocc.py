from __future__ import annotations

import torch
from benchopt import BaseSolver

from bilevel import BLOCC


class Solver(BaseSolver):
    """The published method: gradient steps of size η in c, here with exact responses."""

    name = "BLOCC"
    requirements = ["pip::bilevel"]
    parameters = {"upper_lr": [0.01, 0.1]}
    parameter_template = "η={upper_lr}"

    def set_objective(self, problem, response, c0, z0, penalty, certified):
        self.problem, self.start = problem, (torch.from_numpy(c0), z0)
        self.solver = BLOCC(penalty=penalty, upper_lr=self.upper_lr)

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        self.state = self.solver.init(self.problem, *self.start)
        while callback():
            self.solver.step(self.problem, self.state)

    def get_result(self):
        return {"c": self.state.x.detach().numpy().copy()}
