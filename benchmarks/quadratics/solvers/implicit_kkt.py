from __future__ import annotations

from benchopt import BaseSolver

#: A multiplier above this makes its constraint active.
ACTIVE = 1e-7


class Solver(BaseSolver):
    """Implicit differentiation of the lower level's KKT system (our implementation).

    Clarabel solves the lower level, the sensitivity of its solution comes from the active
    constraints, x takes a gradient step. It is given the problem's matrices, as no other method is.
    """

    name = "Implicit KKT"
    requirements = ["pip::bilevel"]

    def set_objective(self, known):
        self.quadratic, self.x0 = known.quadratic, known.x0
        self.lr = 1.0 / known.upper_smoothness

    def warm_up(self):
        self.run_once()

    def run(self, callback):
        quadratic = self.quadratic
        self.x, self.count = self.x0, 0
        while callback():
            y, multipliers = quadratic.response(self.x)
            sensitivity = quadratic.response_jacobian(multipliers > ACTIVE)
            gradient = self.x - quadratic.a + sensitivity.T @ (y - quadratic.b)
            self.x = self.x - self.lr * gradient
            self.count += 1

    def get_result(self):
        return {"x": self.x, "gradient_evaluations": self.count}
