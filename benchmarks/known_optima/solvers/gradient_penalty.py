from __future__ import annotations

import torch
from benchopt import BaseSolver

#: Weights of the lower-level gap and of the squared constraints, from the first to the last step.
FIRST, LAST = 1.0, 1e3


class Solver(BaseSolver):
    """Our implementation of a plain value-function penalty method (in the manner of BOME).

    Adam on f + γ (g_ρ(x, y) - g_ρ(x, y_g)) + ρ/2 ‖[C]₊‖² in (x, y) together, where g_ρ adds
    ρ/2 ‖[c]₊‖² to g, and y_g follows its minimiser by gradient steps of the same kind. Nothing is
    solved exactly, there are no multipliers.
    """

    name = "Gradient penalty"
    requirements = ["pip::bilevel"]
    parameters = {"lr": [0.05], "steps": [3000], "inner_steps": [5]}
    parameter_template = "lr {lr}, {steps} steps"

    def set_objective(self, problem, x0, y0):
        self.problem, self.x0, self.y0 = problem, x0, y0

    def run(self, _):
        x, y, y_g = (each.clone().requires_grad_() for each in (self.x0, self.y0, self.y0))
        outer = torch.optim.Adam([x, y], lr=self.lr)
        inner = torch.optim.Adam([y_g], lr=self.lr)
        rates = [
            torch.optim.lr_scheduler.CosineAnnealingLR(each, self.steps, 1e-2 * self.lr)
            for each in (outer, inner)
        ]
        for step in range(self.steps):
            weight = FIRST * (LAST / FIRST) ** (step / self.steps)
            for _ in range(self.inner_steps):
                inner.zero_grad()
                self.lower(x, y_g, weight).backward(inputs=[y_g])
                inner.step()
            outer.zero_grad()
            gap = self.lower(x, y, weight) - self.lower(x, y_g.detach(), weight)
            total = self.problem.upper_value(x, y) + weight * gap
            if self.problem.upper_constraints is not None:
                total = total + weight * squares(self.problem.upper_inequalities(x, y))
            total.backward(inputs=[x, y])
            outer.step()
            for rate in rates:
                rate.step()
        self.x, self.y = x.detach(), y.detach()

    def lower(self, x, y, weight):
        g = self.problem.lower_value(x, y)
        c = self.problem.inequalities(x, y)
        return g if c is None else g + weight * squares(c)

    def get_result(self):
        count = self.steps * (self.inner_steps + 1)
        return {"x": self.x, "y": self.y, "gradient_evaluations": count, "outcome": ""}


def squares(constraints):
    return 0.5 * constraints.clamp_min(0.0).square().sum()
