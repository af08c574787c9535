from __future__ import annotations

import numpy as np
import torch
from benchopt import BaseSolver
from scipy.optimize import minimize
from torch.autograd.functional import jacobian

RELAXATIONS = [10.0**-k for k in range(9)]


class Solver(BaseSolver):
    """Our implementation of the classical single-level method, with second derivatives.

    The lower level is replaced by its KKT conditions, the complementarity relaxed to
    -μ_i c_i <= t, and the program in (x, y, μ) is solved by SciPy's SLSQP for t = 1, 0.1, ...,
    1e-8, each from the last solution (Scholtes 2001).
    """

    name = "KKT relaxation, SLSQP"
    requirements = ["pip::bilevel"]

    def set_objective(self, problem, x0, y0):
        self.problem, self.x0, self.y0 = problem, x0, y0

    def run(self, _):
        self.evaluations = 0
        c = self.problem.inequalities(self.x0, self.y0)
        self.multipliers = 0 if c is None else len(c)
        z = np.concatenate([self.x0.numpy(), self.y0.numpy(), np.zeros(self.multipliers)])
        for relaxation in RELAXATIONS:
            kept = [
                self.constraint("eq", self.stationarity),
                self.constraint("ineq", lambda z, t=relaxation: self.inequalities(z, t)),
            ]
            z = minimize(
                self.upper, z, jac=True, method="SLSQP", constraints=kept,
                options={"ftol": 1e-12, "maxiter": 300},
            ).x  # fmt: skip
        self.x, self.y, _ = self.split(torch.tensor(z))

    def get_result(self):
        count = self.evaluations
        return {"x": self.x, "y": self.y, "gradient_evaluations": count, "outcome": ""}

    def split(self, z):
        return z.split([len(self.x0), len(self.y0), self.multipliers])

    def upper(self, z):
        self.evaluations += 1
        z = torch.tensor(z, requires_grad=True)
        x, y, _ = self.split(z)
        f = self.problem.upper_value(x, y)
        return f.item(), torch.autograd.grad(f, z)[0].numpy()

    def constraint(self, kind, function):
        return {
            "type": kind,
            "fun": lambda z: function(torch.tensor(z)).detach().numpy(),
            "jac": lambda z: jacobian(function, torch.tensor(z)).numpy(),
        }

    def stationarity(self, z):
        """∇_y g + (∂c/∂y)ᵀ μ, differentiable in (x, y, μ)."""
        self.evaluations += 1
        x, y, mu = self.split(z)
        with torch.enable_grad():
            y = y.clone().requires_grad_() if not y.requires_grad else y
            total = self.problem.lower_value(x, y)
            if self.multipliers:
                total = total + mu @ self.problem.inequalities(x, y)
            return torch.autograd.grad(total, y, create_graph=True)[0]

    def inequalities(self, z, relaxation):
        x, y, mu = self.split(z)
        parts = [mu]
        if self.multipliers:
            c = self.problem.inequalities(x, y)
            parts += [-c, relaxation + mu * c]
        if self.problem.upper_constraints is not None:
            parts.append(-self.problem.upper_inequalities(x, y))
        return torch.cat(parts)
