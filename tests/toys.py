"""Toy problems with known answers, shared by the tests and the benchmarks' checks."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from bilevel import BilevelProblem, Box


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def negative_toy(domain: Box | None = None) -> BilevelProblem:
    """f = 10 y + x², g = (y - x + 1)²: the optimum is x = -5, PBGD-Free stops at x = 0."""
    return BilevelProblem(
        upper=lambda x, y: 10 * y + x**2,
        lower=lambda x, y: (y - x + 1) ** 2,
        upper_domain=domain,
        lower_domain=domain,
    )


#: The reference model's logit in the positive toy.
X_REF = -5.33958


def positive_toy() -> BilevelProblem:
    """Preference loss over supervised loss with one weight each; both are coupled by a ridge."""

    def ridge(x, y):
        return 0.01 * (x**2 + y**2)

    return BilevelProblem(
        upper=lambda x, y: softplus((x - X_REF) / 2) + ridge(x, y),
        lower=lambda x, y: 0.5 * (softplus(-(x + y) / 2) + softplus(x)) + ridge(x, y),
    )


def value_function_toy() -> BilevelProblem:
    """Three minima of φ(x) = f(x, -x) on [0, 3]: 0.3824, 1.2152 (global), 2.8296."""
    return BilevelProblem(
        upper=lambda x, y: (
            torch.cos(4 * y + 2) / (1 + torch.exp(2 - 4 * x))
            + 0.5 * torch.log((4 * x - 2) ** 2 + 1)
        ),
        lower=lambda x, y: (x + y) ** 2 + x * torch.sin(x + y) ** 2,
        upper_domain=Box(0.0, 3.0),
    )


def coupled_toy(frequency: float, ridge: float) -> BilevelProblem:
    """min (y - 2x)² s.t. y <= x, so y = x: the BLOCC paper's toys (4, 1) and (6, 0)."""
    return BilevelProblem(
        upper=lambda x, y: (
            torch.exp(2 - y) / (2 + torch.cos(frequency * x))
            + 0.5 * torch.log((4 * x - 2) ** 2 + 1)
            + ridge * x**2
        ),
        lower=lambda x, y: (y - 2 * x) ** 2,
        lower_constraints=lambda x, y: (y - x).reshape(1),
        upper_domain=Box(0.0, 3.0),
    )
