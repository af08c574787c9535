from __future__ import annotations

from contextlib import suppress

from benchopt import BaseSolver

from bilevel import BLOCC
from bilevel.errors import BilevelError


class Solver(BaseSolver):
    """BLOCC as it comes: SQP steps with exact responses, the penalty growing from 1 to 1e6."""

    name = "BLOCC"
    requirements = ["pip::bilevel"]
    parameters = {"restarts": [0, 5]}
    parameter_template = "{restarts} restarts"

    def set_objective(self, problem, x0, y0):
        self.problem, self.x0, self.y0 = problem, x0, y0

    def warm_up(self):
        # PyTorch loads parts of itself when they are first used.
        with suppress(BilevelError):
            BLOCC().solve(self.problem, self.x0, self.y0, max_steps=1)

    def run(self, _):
        self.result = {"x": None, "y": None, "gradient_evaluations": 0}
        try:
            found = BLOCC().solve(self.problem, self.x0, self.y0, restarts=self.restarts)
        except BilevelError as error:
            self.result["outcome"] = type(error).__name__
        else:
            self.result = {
                "x": found.x,
                "y": found.y,
                "gradient_evaluations": found.gradient_evaluations,
                "outcome": str(found.status),
            }

    def get_result(self):
        return self.result
