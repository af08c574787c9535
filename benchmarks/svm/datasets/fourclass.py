from __future__ import annotations

from benchmark_utils import parts_of
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """LIBSVM's fourclass: two features, as published."""

    name = "fourclass"
    requirements = ["pip::bilevel", "pip::scikit-learn", "pip::pooch"]
    parameters = {"split": [0, 1, 2, 3, 4]}

    def get_data(self):
        return parts_of(self.name, self.split, 500, 150, lambda dataset: dataset)
