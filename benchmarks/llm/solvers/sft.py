from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """SFT of the head."""

    name = "SFT"
    method = "sft"
    parameters = {"lr": [1e-3]}
    parameter_template = "lr {lr}"
