from __future__ import annotations

from benchopt import BaseSolver

from bilevel import BLOCC


class Solver(BaseSolver):
    """BLOCC as it comes; a step is one stage of its penalty continuation."""

    name = "BLOCC"
    requirements = ["pip::bilevel"]

    def set_objective(self, known):
        self.problem = known.quadratic.problem
        self.start = known.start()

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        solver = BLOCC()
        self.state = solver.init(self.problem, *self.start)
        while callback() and not self.state.finished:
            solver.step(self.problem, self.state)

    def get_next(self, step):
        return step + 1

    def get_result(self):
        x = self.state.x.detach().clone()
        return {"x": x, "gradient_evaluations": self.state.gradient_evaluations}
