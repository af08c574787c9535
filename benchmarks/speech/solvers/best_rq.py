from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """Labels from the features: a frozen random projection, quantised (arXiv:2202.01855)."""

    name = "BEST-RQ"
    method = "best-rq"
