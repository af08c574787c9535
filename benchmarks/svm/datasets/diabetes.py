from __future__ import annotations

from benchmark_utils import parts_of
from benchopt import BaseDataset

from bilevel.datasets import with_quadratic_features


class Dataset(BaseDataset):
    """LIBSVM's diabetes with its 45 quadratic features, as published."""

    name = "diabetes"
    requirements = ["pip::bilevel", "pip::scikit-learn", "pip::pooch"]
    parameters = {"split": [0, 1, 2, 3, 4]}

    def get_data(self):
        return parts_of(self.name, self.split, 500, 150, with_quadratic_features)
