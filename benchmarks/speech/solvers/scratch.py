from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """The encoder as it begins."""

    name = "No pretraining"
    method = "scratch"
    parameters = {}
    parameter_template = ""
    steps = 1
