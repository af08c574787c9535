from __future__ import annotations

from benchmark_utils import Meter
from benchopt import BaseSolver

from bilevel import BLOCC, DifferenceOfConvex
from bilevel.problems.transport import transport_problem, transport_start
from bilevel.schedules import Geometric

LAST_PENALTY = 500.0


class Solver(BaseSolver):
    """BLOCC with difference-of-convex steps: only -γ v is linearised, at an extrapolated point."""

    name = "BLOCC, DC steps"
    requirements = ["pip::bilevel"]
    parameters = {"first_penalty": [0.3, 1.0, 3.0], "steps": [100], "extrapolation": [0.9]}
    parameter_template = "γ from {first_penalty}, {steps} steps, β={extrapolation}"

    def set_objective(self, network, start):
        self.network, self.start = network, start

    def warm_up(self):
        self.solve(1)

    def run(self, _):
        meter = Meter()
        self.result = {"capacity": self.solve(self.steps), **meter.read()}

    def solve(self, steps):
        rising = Geometric(self.first_penalty, LAST_PENALTY, steps=self.steps)
        outer = DifferenceOfConvex(extrapolation=self.extrapolation)
        solution = BLOCC(penalty=rising, outer=outer).solve(
            transport_problem(self.network),
            *transport_start(self.network, self.start),
            max_steps=steps,
            log_every=self.steps,  # a logged step has one more response
            progress=False,
        )
        return solution.x.numpy()

    def get_result(self):
        return self.result
