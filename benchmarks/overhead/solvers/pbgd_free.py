from __future__ import annotations

from functools import partial

import torch
from benchmark_utils import compare
from benchopt import BaseSolver
from torch.utils._pytree import tree_leaves

from bilevel import BilevelProblem, PBGDFree

PENALTY, RATE = 10.0, 1e-3


class Solver(BaseSolver):
    """PBGDFree with one inner step against the same loop by hand."""

    name = "PBGDFree"
    requirements = ["pip::bilevel"]
    parameters = {"optimizer": ["SGD", "Adam"]}

    def set_objective(self, upper, lower, start, long_run):
        self.problem = BilevelProblem(upper=upper, lower=lower)
        self.start = start
        self.long_run = long_run

    def run(self, _):
        optimizer = partial(getattr(torch.optim, self.optimizer), lr=RATE)
        solver = PBGDFree(penalty=PENALTY, upper_optimizer=optimizer, lower_optimizer=optimizer)
        step, x = hand_written(self.problem.upper, self.problem.lower, self.start(), optimizer)
        self.cost = compare(solver, self.problem, self.start, step, x, self.long_run)

    def get_result(self):
        return {"cost": self.cost}


def hand_written(upper, lower, start, optimizer):
    x, y = start
    xs = [leaf.requires_grad_() for leaf in tree_leaves(x)]
    ys = [leaf.requires_grad_() for leaf in tree_leaves(y)]
    upper_optimizer, lower_optimizer = optimizer(xs), optimizer(ys)

    def step():
        lower_optimizer.zero_grad()
        (upper(x, y) / PENALTY + lower(x, y)).backward(inputs=ys)
        lower_optimizer.step()
        upper_optimizer.zero_grad()
        upper(x, y).backward(inputs=xs)
        upper_optimizer.step()

    return step, xs
