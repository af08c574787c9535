"""Per-example error bounds of a support vector machine, chosen on validation data.

The hyperparameter program of BLOCC (Jiang et al. 2024, arXiv:2406.10148) with its exact numerical
kernels: the follower's responses, the difference-of-convex step, and a certified lower bound.
"""

from bilevel.problems.svm.linearised import linearised_step
from bilevel.problems.svm.metrics import Evaluator, Metrics
from bilevel.problems.svm.problem import ExactSVMResponse, svm_problem, svm_program
from bilevel.problems.svm.program import KKTPoint, SVMProgram, signed_rows
from bilevel.problems.svm.relaxation import RelaxedOptimum, relaxed_optimum
from bilevel.problems.svm.response import SVMResponse

__all__ = [
    "Evaluator",
    "ExactSVMResponse",
    "KKTPoint",
    "Metrics",
    "RelaxedOptimum",
    "SVMProgram",
    "SVMResponse",
    "linearised_step",
    "relaxed_optimum",
    "signed_rows",
    "svm_problem",
    "svm_program",
]
