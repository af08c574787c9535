from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """DPO of backbone and head."""

    name = "DPO"
    method = "dpo"
    parameters = {"lr": [1e-3]}
    parameter_template = "lr {lr}"
