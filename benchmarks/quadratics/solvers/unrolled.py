from __future__ import annotations

from benchopt import BaseSolver
from torch.autograd import grad


class Solver(BaseSolver):
    """ITD (our implementation): reverse differentiation through K gradient steps in y.

    The steps begin at the last response, which counts as constant.
    """

    name = "ITD"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps": [30]}
    parameter_template = "K={inner_steps}"

    def skip(self, known):
        return len(known.quadratic.e) > 0, "for unconstrained lower levels"

    def set_objective(self, known):
        self.problem = known.quadratic.problem
        self.start = known.start()
        self.upper_lr = 1.0 / known.upper_smoothness
        self.lower_lr = 1.0 / known.lower_smoothness

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        f, g = self.problem.upper, self.problem.lower
        self.x, y = (each.clone().requires_grad_() for each in self.start)
        self.count = 0
        while callback():
            y = y.detach().requires_grad_()
            for _ in range(self.inner_steps):
                (slope,) = grad(g(self.x, y), y, create_graph=True)
                y = y - self.lower_lr * slope
            (slope,) = grad(f(self.x, y), self.x)
            self.x = (self.x - self.upper_lr * slope).detach().requires_grad_()
            # Reverse mode makes one Hessian-vector product for each step that it goes back.
            self.count += 2 * self.inner_steps + 1

    def get_result(self):
        return {"x": self.x.detach(), "gradient_evaluations": self.count}
