"""A problem that is fine, solvers of every kind, and what must hold once one refuses its input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from bilevel import BLOCC, PBGD, BilevelProblem, MaxMin, PBGDFree, Solution
from bilevel.errors import BilevelError


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def f(x, y):
    return ((x - 1) ** 2).sum() + ((y - 2) ** 2).sum()


def g(x, y):
    return ((y - x) ** 2).sum()


def c(x, y):
    return y - x - 1


def problem(**changed) -> BilevelProblem:
    """min (x - 1)² + (y - 2)² with y = x; any part can be exchanged."""
    return BilevelProblem(**{"upper": f, "lower": g, **changed})


#: First-order and exact paths, each of which must notice by itself.
SOLVERS = {
    "PBGDFree": PBGDFree(penalty=10.0, upper_lr=0.05, lower_lr=0.05),
    "PBGD": PBGD(penalty=10.0, upper_lr=0.01, lower_lr=0.05),
    "MaxMin": BLOCC(penalty=10.0, upper_lr=0.01, response=MaxMin(lr=0.1, steps=5)),
    "SQP": BLOCC(),
}
#: Those that take lower-level constraints.
CONSTRAINED = ("MaxMin", "SQP")


def solve(solver="PBGDFree", x0=None, y0=None, *, max_steps=20, **options) -> Solution:
    """Solve the fine problem, or one given as ``problem``, from the origin or a given start."""
    chosen = SOLVERS[solver] if isinstance(solver, str) else solver
    stated = options.pop("problem", None) or problem()
    x0 = vector(0.0, 0.0) if x0 is None else x0
    y0 = vector(0.0, 0.0) if y0 is None else y0
    return chosen.solve(stated, x0, y0, max_steps=max_steps, **options)


@contextmanager
def refused(
    error: type[BilevelError], *words: str, keeping: tuple[Tensor, ...] = ()
) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error whose message has all the words, and tensors that end as they were."""
    before = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in keeping]
    with pytest.raises(error, match=re.escape(words[0])) as caught:
        yield caught
    for word in words[1:]:
        assert word in str(caught.value)
    for tensor, value, required in before:
        assert torch.equal(tensor.detach(), value)
        assert tensor.requires_grad == required
        assert tensor.grad is None
