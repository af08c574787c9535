from __future__ import annotations

from benchopt import BaseSolver

from bilevel import PBGDFree


class Solver(BaseSolver):
    """PBGDFree with K gradient steps in y: cheap, and biased by the conflict of the levels."""

    name = "PBGDFree"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps": [1], "penalty": [10.0]}
    parameter_template = "K={inner_steps} γ={penalty:g}"

    def skip(self, known):
        return len(known.quadratic.e) > 0, "run here without constraints only"

    def set_objective(self, known):
        self.problem = known.quadratic.problem
        self.start = known.start()
        self.solver = PBGDFree(
            penalty=self.penalty,
            upper_lr=1.0 / known.upper_smoothness,
            lower_lr=1.0 / (known.lower_smoothness + 1.0 / self.penalty),
            inner_steps=self.inner_steps,
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
