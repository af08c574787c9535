"""A small classifier whose backbone is x and whose head is y, shared by the training tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bilevel import BilevelProblem

Batch = tuple[Tensor, Tensor]

torch.set_num_threads(1)  # the tensors are tiny, and the order of sums must not vary

FEATURES, HIDDEN, CLASSES = 4, 6, 3


class Network(nn.Module):
    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(FEATURES, 8, dtype=dtype),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(8, HIDDEN, dtype=dtype),
            nn.Tanh(),
        )
        self.head = nn.Linear(HIDDEN, CLASSES, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))

    def levels(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """x, the backbone's parameters, and y, the head's."""
        return dict(self.backbone.named_parameters()), dict(self.head.named_parameters())


def network(seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    return Network(**options)


def batches(seed: int, count: int = 20, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count, size), generator=generator)
    return list(zip(inputs, labels, strict=True))


def losses(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """f, the cross entropy, and g, which smooths the labels and shrinks the outputs."""
    f = cross_entropy(outputs, labels)
    return f, cross_entropy(outputs, labels, label_smoothing=0.1) + 0.05 * outputs.square().mean()


def classification(predict: Callable[[Tensor], Tensor]) -> BilevelProblem:
    """The bilevel problem of a network that is called inside f and g."""
    return BilevelProblem(
        upper=lambda x, y, batch: losses(predict(batch[0]), batch[1])[0],
        lower=lambda x, y, batch: losses(predict(batch[0]), batch[1])[1],
    )
