from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """The value-function-free penalty method: one step of the head, one of the backbone."""

    name = "PBGD-Free"
    method = "pbgd-free"
    parameters = {"lr": [1e-3], "penalty": [10.0]}
    parameter_template = "lr {lr}, γ={penalty}"
