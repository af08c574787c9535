from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """Half of the time for SFT of the head, half for DPO of everything."""

    name = "SFT, then DPO"
    method = "sequential"
    parameters = {"lr": [1e-3]}
    parameter_template = "lr {lr}"
