from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """A step on DPO in both levels, or on SFT in the head, drawn each time (arXiv:2410.15483)."""

    name = "ALRIGHT"
    method = "alright"
    parameters = {"lr": [1e-3]}
    parameter_template = "lr {lr}"
