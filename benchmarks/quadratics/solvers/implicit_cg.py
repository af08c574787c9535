from __future__ import annotations

import torch
from benchopt import BaseSolver
from torch.autograd import grad


class Solver(BaseSolver):
    """AID-CG (our implementation): implicit differentiation by conjugate gradients.

    K warm-started gradient steps in y; K warm-started iterations of conjugate gradients for
    ∇²_yy g v = ∇_y f; then a step along ∇_x f - ∇²_xy g v.
    """

    name = "AID-CG"
    requirements = ["pip::bilevel"]
    parameters = {"inner_steps": [10]}
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
        v, self.count = torch.zeros_like(y), 0
        while callback():
            for _ in range(self.inner_steps):
                (slope,) = grad(g(self.x, y), y)
                y = (y - self.lower_lr * slope).detach().requires_grad_()
            slope_x, slope_y = grad(f(self.x, y), (self.x, y))
            (lower_slope,) = grad(g(self.x, y), y, create_graph=True)
            v = self.conjugate_gradients(
                lambda u, s=lower_slope, y=y: grad(s, y, u, retain_graph=True)[0], slope_y, v
            )
            (cross,) = grad(lower_slope, self.x, v)
            self.x = (self.x - self.upper_lr * (slope_x - cross)).detach().requires_grad_()
            self.count += self.inner_steps + 3

    def conjugate_gradients(self, multiply, target, v):
        residual = target - multiply(v)
        direction = residual
        self.count += 1
        for _ in range(self.inner_steps):
            size = residual @ residual
            if size <= 1e-30:
                break
            image = multiply(direction)
            length = size / (direction @ image)
            v = v + length * direction
            residual = residual - length * image
            direction = residual + (residual @ residual) / size * direction
            self.count += 1
        return v

    def get_result(self):
        return {"x": self.x.detach(), "gradient_evaluations": self.count}
