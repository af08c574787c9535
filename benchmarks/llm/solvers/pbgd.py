from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """The penalty method with both responses of the head, K steps on each."""

    name = "PBGD"
    method = "pbgd"
    parameters = {"lr": [1e-3], "penalty": [10.0], "inner_steps": [3]}
    parameter_template = "lr {lr}, γ={penalty}, K={inner_steps}"
