"""Lower-level response solvers, chosen independently of the outer solver."""

from bilevel.responses.base import Response
from bilevel.responses.cvxpy_response import CvxpyResponse
from bilevel.responses.exact import Exact
from bilevel.responses.gradient_descent import GradientDescent
from bilevel.responses.max_min import MaxMin

__all__ = ["CvxpyResponse", "Exact", "GradientDescent", "MaxMin", "Response"]
