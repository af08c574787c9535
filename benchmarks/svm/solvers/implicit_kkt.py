from __future__ import annotations

import numpy as np
from benchopt import BaseSolver

#: Relative size from which a multiplier makes its constraint active.
ACTIVE = 1e-9


class Solver(BaseSolver):
    """Implicit gradient descent on f(c, z(c)) (our implementation).

    Exact responses by the library's kernels; dz/dc from the KKT system of the constraints with
    positive multipliers; steps of size η, projected on the feasible c.
    """

    name = "Implicit KKT"
    requirements = ["pip::bilevel"]
    parameters = {"upper_lr": [0.01]}
    parameter_template = "η={upper_lr}"

    def set_objective(self, problem, response, c0, z0, penalty, certified):
        self.response, self.program, self.c0 = response, response.program, c0

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        self.c, point = self.c0, None
        while callback():
            point = self.response.original(self.c, point)
            step = self.c - self.upper_lr * self.gradient(point)
            self.c = self.response.project(np.maximum(step, self.program.floor), margin=1e-7)

    def gradient(self, point):
        rows, validation = self.program.train_rows, self.program.validation_rows
        slope = -validation.T @ np.exp(1 - validation @ point.z)
        total = self.c / np.linalg.norm(self.c)
        active = np.flatnonzero(point.mu > ACTIVE * point.mu.max(initial=0.0))
        if not len(active):
            return total
        size, count = rows.shape[1], len(active)
        curvature = np.eye(size)
        curvature[-1, -1] = 0.0  # the intercept is free
        system = np.zeros((size + count, size + count))
        system[:size, :size] = curvature
        system[:size, size:] = rows[active].T
        system[size:, :size] = rows[active]
        adjoint, *_ = np.linalg.lstsq(system, np.append(slope, np.zeros(count)), rcond=1e-12)
        total[active] -= adjoint[size:]  # A z = 1 - c on the active set
        return total

    def get_result(self):
        return {"c": self.c}
