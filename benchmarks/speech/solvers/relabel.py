from __future__ import annotations

from benchmark_utils import MethodSolver


class Solver(MethodSolver):
    """Labels from layer k of a finished BEST-RQ encoder, trained here first, as HuBERT has them."""

    name = "Relabelling"
    method = "relabel"

    def pretrained(self, method, teacher=None):
        return super().pretrained(method, super().pretrained("best-rq"))
