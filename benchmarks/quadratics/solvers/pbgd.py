from __future__ import annotations

from benchopt import BaseSolver

from bilevel import PBGD, Exact, GradientDescent


class Solver(BaseSolver):
    """PBGD with gradient steps in x, exact responses (K = 0) or K gradient steps each."""

    name = "PBGD"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps, penalty": [(0, 1e4), (10, 1e2)]}
    parameter_template = "K={inner_steps} γ={penalty:g}"

    def skip(self, known):
        return len(known.quadratic.e) > 0, "constraints: BLOCC's"

    def set_objective(self, known):
        self.problem = known.quadratic.problem
        self.start = known.start()
        if self.inner_steps:
            lr = 1.0 / (known.lower_smoothness + 1.0 / self.penalty)
            response = GradientDescent(steps=self.inner_steps, lr=lr)
        else:
            response = Exact()
        self.solver = PBGD(
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
