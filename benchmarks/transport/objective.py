from __future__ import annotations

import math

import numpy as np
from benchopt import BaseObjective

from bilevel.errors import BilevelError
from bilevel.problems.transport import assess

#: True profits that are known: of the published code, and the best that any method has found.
PUBLISHED = {"three-node": 1.7211, "nine-node": 12.855, "seville": 79.12}
BEST_KNOWN = {"three-node": 1.761594, "nine-node": 17.2848, "seville": 226.4286}


class Objective(BaseObjective):
    """True profit of a plan: what passengers do at its capacities, by an independent solver."""

    name = "Transport planning"
    url = "../../../benchmarks/transport"
    requirements = ["pip::bilevel"]
    min_benchopt_version = "1.6"
    sampling_strategy = "run_once"

    def skip(self, network, start, reason):
        return network is None, reason or None

    def set_data(self, network, start, reason):
        self.network, self.start = network, start

    def get_objective(self):
        return {"network": self.network, "start": self.start}

    def evaluate_result(self, capacity, cpu_seconds, peak_gib):
        name = self.network.name
        row = {
            "published": PUBLISHED.get(name, math.nan),
            "best_known": BEST_KNOWN.get(name, math.nan),
            "cpu_seconds": cpu_seconds,
            "peak_gib": peak_gib,
        }
        try:
            found = assess(self.network, capacity)
        except BilevelError as error:
            return {"value": math.inf, **row, "outcome": type(error).__name__}
        return {
            "value": -found.trimmed_profit,
            "profit": found.profit,
            "trimmed_profit": found.trimmed_profit,
            "share_served": found.share_served,
            "unused_capacity": found.unused_capacity,
            "certified_gap": found.gap,
            "outcome": "",
            **row,
        }

    def get_one_result(self):
        return {"capacity": np.array(self.start), "cpu_seconds": 0.0, "peak_gib": 0.0}
