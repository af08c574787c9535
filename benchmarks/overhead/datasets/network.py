from __future__ import annotations

import torch
from benchopt import BaseDataset
from torch.nn.functional import cross_entropy, linear


class Dataset(BaseDataset):
    """A multilayer perceptron 784-680-680-10 (1,003,690 weights): backbone x, head y.

    f and g are the cross entropies of two random batches.
    """

    name = "network of 1M weights"
    requirements = ["pip::bilevel"]
    parameters = {"batch_size": [64], "long_run": [500]}
    parameter_template = "batch_size={batch_size}"

    def get_data(self):
        generator = torch.Generator().manual_seed(self.get_seed())
        batches = [
            (
                torch.randn(self.batch_size, 784, generator=generator),
                torch.randint(10, (self.batch_size,), generator=generator),
            )
            for _ in range(2)
        ]
        return {
            "upper": lambda x, y: loss(x, y, *batches[0]),
            "lower": lambda x, y: loss(x, y, *batches[1]),
            "start": start,
            "long_run": self.long_run,
        }


def loss(x, y, inputs, labels):
    hidden = torch.relu(linear(inputs, x["weight1"], x["bias1"]))
    hidden = torch.relu(linear(hidden, x["weight2"], x["bias2"]))
    return cross_entropy(linear(hidden, y["weight"], y["bias"]), labels)


def start():
    generator = torch.Generator().manual_seed(0)

    def weight(outputs, inputs):
        return torch.randn(outputs, inputs, generator=generator) / inputs**0.5

    backbone = {
        "weight1": weight(680, 784),
        "bias1": torch.zeros(680),
        "weight2": weight(680, 680),
        "bias2": torch.zeros(680),
    }
    return backbone, {"weight": weight(10, 680), "bias": torch.zeros(10)}
