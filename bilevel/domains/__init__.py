"""Sets with a cheap Euclidean projection, for the variables of either level."""

from bilevel.domains.affine import AffineSubspace
from bilevel.domains.balls import Ball, L1Ball
from bilevel.domains.base import Domain
from bilevel.domains.boxes import Box, NonNegative, Reals
from bilevel.domains.matching import DomainTree, domains_of_leaves
from bilevel.domains.simplex import Simplex

__all__ = [
    "AffineSubspace",
    "Ball",
    "Box",
    "Domain",
    "DomainTree",
    "L1Ball",
    "NonNegative",
    "Reals",
    "Simplex",
    "domains_of_leaves",
]
