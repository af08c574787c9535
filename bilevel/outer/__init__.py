"""Outer steps: how x is moved."""

from bilevel.outer.base import Outer
from bilevel.outer.difference_of_convex import DifferenceOfConvex
from bilevel.outer.first_order import FirstOrder
from bilevel.outer.quasi_newton import QuasiNewton
from bilevel.outer.sqp import SQP

__all__ = ["SQP", "DifferenceOfConvex", "FirstOrder", "Outer", "QuasiNewton"]
