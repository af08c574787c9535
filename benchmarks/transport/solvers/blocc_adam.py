from __future__ import annotations

from functools import partial

import torch
from benchmark_utils import Meter
from benchopt import BaseSolver

from bilevel import BLOCC
from bilevel.problems.transport import transport_problem, transport_start
from bilevel.schedules import Geometric


class Solver(BaseSolver):
    """The paper's method: projected steps along c + γ(λ_g - λ_γ), here with exact responses.

    The steps are Adam's, in units of the mean capacity of the start: plain gradient steps of the
    published sizes take 1e5 iterations and more.
    """

    name = "BLOCC, Adam"
    requirements = ["pip::bilevel"]
    parameters = {
        "first_penalty, last_penalty": [(3.0, 3.0), (1.0, 50.0)],
        "lr": [0.02],
        "steps": [400],
    }
    parameter_template = "γ {first_penalty} to {last_penalty}, {steps} steps"

    def set_objective(self, network, start):
        self.network, self.start = network, start

    def warm_up(self):
        self.solve(1)

    def run(self, _):
        meter = Meter()
        self.result = {"capacity": self.solve(self.steps), **meter.read()}

    def solve(self, steps):
        rising = Geometric(self.first_penalty, self.last_penalty, steps=self.steps)
        adam = partial(torch.optim.Adam, lr=self.lr * float(self.start.mean()))
        solution = BLOCC(penalty=rising, upper_optimizer=adam).solve(
            transport_problem(self.network),
            *transport_start(self.network, self.start),
            max_steps=steps,
            progress=False,
        )
        return solution.x.numpy()

    def get_result(self):
        return self.result
