from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """Anchor labels below, labels of the encoder's own layer k above (arXiv:2509.15430)."""

    name = "BiRQ"
    method = "birq"
