"""First-order bilevel optimisation for PyTorch."""

from bilevel.domains import AffineSubspace, Ball, Box, L1Ball, NonNegative, Reals, Simplex
from bilevel.outer import SQP, DifferenceOfConvex, FirstOrder, QuasiNewton
from bilevel.problem import BilevelProblem
from bilevel.responses import CvxpyResponse, Exact, GradientDescent, MaxMin
from bilevel.solution import Solution, Status
from bilevel.solvers import BLOCC, BOME, PBGD, PBGDFree
from bilevel.version import __version__

__all__ = [
    "BLOCC",
    "BOME",
    "PBGD",
    "SQP",
    "AffineSubspace",
    "Ball",
    "BilevelProblem",
    "Box",
    "CvxpyResponse",
    "DifferenceOfConvex",
    "Exact",
    "FirstOrder",
    "GradientDescent",
    "L1Ball",
    "MaxMin",
    "NonNegative",
    "PBGDFree",
    "QuasiNewton",
    "Reals",
    "Simplex",
    "Solution",
    "Status",
    "__version__",
]
