from __future__ import annotations

import torch
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """Two numbers: a step is all overhead, PyTorch's own included."""

    name = "two numbers"
    requirements = ["pip::bilevel"]
    parameters = {"long_run": [10_000]}

    def get_data(self):
        return {
            "upper": lambda x, y: x**2 + 10 * y,
            "lower": lambda x, y: (y - x + 1) ** 2,
            "start": lambda: (torch.tensor(1.0), torch.tensor(1.0)),
            "long_run": self.long_run,
        }
