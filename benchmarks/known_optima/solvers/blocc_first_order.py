from __future__ import annotations

from functools import partial

import torch
from benchopt import BaseSolver

from bilevel import BLOCC, Exact
from bilevel.errors import BilevelError
from bilevel.schedules import Geometric


class Solver(BaseSolver):
    """BLOCC with exact responses and Adam in x, the penalty growing from 1 to 1e4.

    Upper constraints enter by an augmented Lagrangian; the lower level's are relaxed by an exact
    penalty, so that an x without a feasible y has a response.
    """

    name = "BLOCC, Adam"
    requirements = ["pip::bilevel"]
    parameters = {"lr": [0.5], "steps": [1000], "elastic": [1e3]}
    parameter_template = "lr {lr}, {steps} steps"

    def set_objective(self, problem, x0, y0):
        self.problem, self.x0, self.y0 = problem, x0, y0

    def run(self, _):
        self.result = {"x": None, "y": None, "gradient_evaluations": 0}
        solver = BLOCC(
            upper_optimizer=partial(torch.optim.Adam, lr=self.lr),
            upper_scheduler=partial(
                torch.optim.lr_scheduler.CosineAnnealingLR, T_max=self.steps, eta_min=1e-4
            ),
            response=Exact(elastic=self.elastic),
            penalty=Geometric(1.0, 1e4, steps=self.steps // 2),
        )
        try:
            found = solver.solve(self.problem, self.x0, self.y0, max_steps=self.steps)
        except BilevelError as error:
            self.result["outcome"] = type(error).__name__
        else:
            self.result = {
                "x": found.x,
                "y": found.y,
                "gradient_evaluations": found.gradient_evaluations,
                "outcome": str(found.status),
            }

    def get_result(self):
        return self.result
