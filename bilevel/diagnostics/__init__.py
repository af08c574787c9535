"""Measurements that tell whether a method fits a problem and an answer can be trusted."""

from bilevel.bias import Bias
from bilevel.diagnostics.bias import bias
from bilevel.diagnostics.flatness import Flatness
from bilevel.diagnostics.flatness_fit import FlatnessFit, fit_flatness
from bilevel.diagnostics.hypergradient_check import HypergradientCheck, check_hypergradient
from bilevel.diagnostics.hypergradients import hypergradient
from bilevel.diagnostics.path import PenaltyPath, penalty_path
from bilevel.diagnostics.residuals import lower_gap, stationarity

__all__ = [
    "Bias",
    "Flatness",
    "FlatnessFit",
    "HypergradientCheck",
    "PenaltyPath",
    "bias",
    "check_hypergradient",
    "fit_flatness",
    "hypergradient",
    "lower_gap",
    "penalty_path",
    "stationarity",
]
