from __future__ import annotations

from functools import partial

import torch
from benchmark_utils import compare
from benchopt import BaseSolver
from torch.utils._pytree import tree_leaves, tree_map

from bilevel import PBGD, BilevelProblem

PENALTY, RATE = 10.0, 1e-3


class Solver(BaseSolver):
    """Alternating PBGD with one inner step against the same loop by hand."""

    name = "PBGD"
    requirements = ["pip::bilevel"]
    parameters = {"optimizer": ["SGD", "Adam"]}

    def set_objective(self, upper, lower, start, long_run):
        self.problem = BilevelProblem(upper=upper, lower=lower)
        self.start = start
        self.long_run = long_run

    def run(self, _):
        optimizer = partial(getattr(torch.optim, self.optimizer), lr=RATE)
        solver = PBGD(penalty=PENALTY, upper_optimizer=optimizer, lower_optimizer=optimizer)
        step, x = hand_written(self.problem.upper, self.problem.lower, self.start(), optimizer)
        self.cost = compare(solver, self.problem, self.start, step, x, self.long_run)

    def get_result(self):
        return {"cost": self.cost}


def hand_written(upper, lower, start, optimizer):
    x, y = start
    y_g = tree_map(torch.clone, y)
    xs, ys, ys_g = ([leaf.requires_grad_() for leaf in tree_leaves(each)] for each in (x, y, y_g))
    upper_optimizer, *lower_optimizers = optimizer(xs), optimizer(ys), optimizer(ys_g)

    def step():
        for each in lower_optimizers:
            each.zero_grad()
        (upper(x, y) / PENALTY + lower(x, y)).backward(inputs=ys)
        lower(x, y_g).backward(inputs=ys_g)
        for each in lower_optimizers:
            each.step()
        upper_optimizer.zero_grad()
        (upper(x, y) + PENALTY * (lower(x, y) - lower(x, y_g))).backward(inputs=xs)
        upper_optimizer.step()

    return step, xs
