from __future__ import annotations

from benchmark_utils import parts_of, standardised
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """Breast cancer, standardised: separable, so f* is a bound and not the optimum."""

    name = "breast_cancer"
    requirements = ["pip::bilevel", "pip::scikit-learn"]
    parameters = {"split": [0, 1, 2, 3, 4]}

    def get_data(self):
        data = parts_of(self.name, self.split, 300, 100, lambda dataset: dataset)
        return {**data, "parts": data["parts"] and standardised(data["parts"])}
