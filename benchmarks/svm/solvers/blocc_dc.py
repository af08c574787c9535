from __future__ import annotations

import torch
from benchopt import BaseSolver

from bilevel import BLOCC, DifferenceOfConvex
from bilevel.schedules import Geometric

#: A penalty that falls where the certificate holds (the follower has no choice at the optimum),
#: and otherwise one that grows.
FALLING, RISING = Geometric(12.0, 12.0 / 3**12, steps=12), Geometric(0.1, 1000.0, steps=15)


class Solver(BaseSolver):
    """BLOCC with difference-of-convex steps: only -γ v is linearised."""

    name = "BLOCC, DC steps"
    requirements = ["pip::bilevel"]

    def set_objective(self, problem, response, c0, z0, penalty, certified):
        self.problem, self.start = problem, (torch.from_numpy(c0), z0)
        schedule = FALLING if certified else RISING
        self.solver = BLOCC(penalty=schedule, outer=DifferenceOfConvex())

    def get_next(self, step):
        return step + 1

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        self.state = self.solver.init(self.problem, *self.start)
        while callback() and not self.state.finished:
            self.solver.step(self.problem, self.state)

    def get_result(self):
        return {"c": self.state.x.detach().numpy().copy()}
