from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """The penalty follows from the gradients (arXiv:2209.08709); K steps on the lower response."""

    name = "BOME"
    method = "bome"
    parameters = {"lr": [1e-3], "inner_steps": [3]}
    parameter_template = "lr {lr}, K={inner_steps}"
