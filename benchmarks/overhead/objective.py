from __future__ import annotations

from benchopt import BaseObjective


class Objective(BaseObjective):
    """CPU time of `solver.step` over that of the same step written by hand in PyTorch."""

    name = "Solver overhead"
    url = "../../../benchmarks/overhead"
    requirements = ["pip::bilevel"]
    min_benchopt_version = "1.6"
    sampling_strategy = "run_once"

    def set_data(self, upper, lower, start, long_run):
        self.data = {"upper": upper, "lower": lower, "start": start, "long_run": long_run}

    def get_objective(self):
        return self.data

    def evaluate_result(self, cost):
        return cost

    def get_one_result(self):
        return {"cost": {"ratio": 1.0}}
