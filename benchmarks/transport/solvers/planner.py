from __future__ import annotations

from benchmark_utils import Meter
from benchopt import BaseSolver

from bilevel.problems.transport import plan_network


class Solver(BaseSolver):
    """All stages: runs of BLOCC from several penalties, trimming, and the polish on tolls."""

    name = "Planner"
    requirements = ["pip::bilevel"]
    parameters = {"steps": [100], "rounds": [0, 20]}
    parameter_template = "{steps} steps, {rounds} rounds"

    def set_objective(self, network, start):
        self.network, self.start = network, start

    def warm_up(self):
        plan_network(self.network, start=self.start, steps=1, first_penalties=(1.0,), trim=False)

    def run(self, _):
        meter = Meter()
        plan = plan_network(
            self.network,
            start=self.start,
            steps=self.steps,
            polish=self.rounds,
            seed=self.get_seed(use_objective=False, use_dataset=False),
            progress=False,
        )
        self.result = {"capacity": plan.assessment.capacity, **meter.read()}

    def get_result(self):
        return self.result
