from __future__ import annotations

import numpy as np
from benchopt import BaseSolver

from bilevel import BLOCC, Exact, MaxMin


class Solver(BaseSolver):
    """BLOCC with gradient steps in x, exact responses (T = 0) or T primal-dual steps each."""

    name = "BLOCC, gradient steps"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps, penalty": [(0, 1e4), (30, 1e2)]}
    parameter_template = "T={inner_steps} γ={penalty:g}"

    def skip(self, known):
        return len(known.quadratic.e) == 0, "without constraints it is PBGD"

    def set_objective(self, known):
        quadratic = known.quadratic
        self.problem = quadratic.problem
        self.start = known.start()
        response = Exact()
        if self.inner_steps:
            norm = np.linalg.norm(quadratic.A, 2)
            response = MaxMin(
                steps=self.inner_steps,
                lr=1.0 / (known.lower_smoothness + 1.0 / self.penalty),
                dual_lr=known.lower_convexity / norm**2,
            )
        self.solver = BLOCC(
            penalty=self.penalty, upper_lr=1.0 / known.upper_smoothness, response=response
        )

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        self.state = self.solver.init(self.problem, *self.start)
        while callback():
            self.solver.step(self.problem, self.state)

    def get_result(self):
        x = self.state.x.detach().clone()
        return {"x": x, "gradient_evaluations": self.state.gradient_evaluations}
