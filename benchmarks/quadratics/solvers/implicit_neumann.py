from __future__ import annotations

from benchopt import BaseSolver
from torch.autograd import grad


class Solver(BaseSolver):
    """AID with a Neumann series (our implementation), as stocBiO uses it, without sampling.

    As AID-CG, with v = η Σ_{k<K} (I - η ∇²_yy g)^k ∇_y f in the place of conjugate gradients.
    """

    name = "AID-Neumann"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps": [10], "terms": [30]}
    parameter_template = "K={inner_steps}, {terms} terms"

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
            for _ in range(self.inner_steps):
                (slope,) = grad(g(self.x, y), y)
                y = (y - self.lower_lr * slope).detach().requires_grad_()
            slope_x, term = grad(f(self.x, y), (self.x, y))
            (lower_slope,) = grad(g(self.x, y), y, create_graph=True)
            v = self.lower_lr * term
            for _ in range(self.terms - 1):
                term = term - self.lower_lr * grad(lower_slope, y, term, retain_graph=True)[0]
                v = v + self.lower_lr * term
            (cross,) = grad(lower_slope, self.x, v)
            self.x = (self.x - self.upper_lr * (slope_x - cross)).detach().requires_grad_()
            self.count += self.inner_steps + self.terms + 2

    def get_result(self):
        return {"x": self.x.detach(), "gradient_evaluations": self.count}
