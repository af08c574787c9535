"""The solvers, one file each."""

from bilevel.solvers.blocc import BLOCC
from bilevel.solvers.bome import BOME
from bilevel.solvers.pbgd import PBGD
from bilevel.solvers.pbgd_free import PBGDFree

__all__ = ["BLOCC", "BOME", "PBGD", "PBGDFree"]
