from __future__ import annotations

from benchmark_utils import random_quadratic
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """A random strongly convex quadratic bilevel problem; m = 0: without constraints."""

    name = "random quadratic"
    requirements = ["pip::bilevel"]
    parameters = {
        "n, d, m": [(20, 40, 0), (100, 200, 0), (20, 40, 20), (100, 200, 100)],
        "condition": [10.0],
        "conflict": [1.0],
        "margin": [5.0],
        "instance": [0, 1, 2],
    }
    parameter_template = (
        "n={n} d={d} m={m} condition={condition:g} conflict={conflict:g} margin={margin:g} "
        "instance={instance}"
    )
    test_parameters = {"n, d, m": [(4, 6, 3)], "instance": [0]}

    def get_data(self):
        known = random_quadratic(
            self.get_seed() + self.instance,
            *(self.n, self.d, self.m),
            *(self.condition, self.conflict, self.margin),
        )
        return {"known": known}
