"""Whether the penalty method's gradient is the hypergradient that it should approach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bilevel.calculus import Array
from bilevel.diagnostics.hypergradients import (
    finite_differences,
    implicit_terms,
    penalty_gradient,
)
from bilevel.diagnostics.point import at, exact_response, require_upper_variable
from bilevel.errors import OptionError
from bilevel.problem import BilevelProblem
from bilevel.schedules import Constant
from bilevel.trees import Tree, rebuild
from bilevel.variables import unflatten


@dataclass(frozen=True)
class HypergradientCheck:
    r"""The errors of the penalty hypergradient and of finite differences against the implicit one.

    Errors are relative to :math:`\|\nabla_x f\| + \|D^\top\nabla_y f\|`, the sizes of the two terms
    whose sum ∇φ is, so that they also say something where ∇φ vanishes.

    Attributes
    ----------
    hypergradient : tree of tensors
        ∇φ by implicit differentiation.
    finite_difference_error : float
        Of central differences of φ; about 1e-9 on well-scaled problems.
    penalties, penalty_errors : tuple of float
        γ and the error of ∇F_γ.
    exponent : float
        Slope of log error against log γ, the median over successive penalties; −1 in theory. NaN
        where fewer than two errors rise above the responses' rounding times γ.
    """

    hypergradient: Tree = field(repr=False)
    finite_difference_error: float
    penalties: tuple[float, ...]
    penalty_errors: tuple[float, ...]
    exponent: float

    def __str__(self) -> str:
        lines = [
            "hypergradient, relative errors against implicit differentiation",
            f"finite differences  {self.finite_difference_error:.1e}",
        ]
        lines += [
            f"penalty {penalty:<11g} {error:.1e}"
            for penalty, error in zip(self.penalties, self.penalty_errors, strict=True)
        ]
        if math.isnan(self.exponent):
            lines.append("fewer than two penalty errors above rounding: no rate to fit")
        else:
            lines.append(f"error ∝ penalty^{self.exponent:.2f} (expected: -1)")
        return "\n".join(lines)


def check_hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y0: Tree,
    penalties: Sequence[float] = (1e1, 1e2, 1e3, 1e4),
) -> HypergradientCheck:
    """Compare the three ways of :func:`hypergradient` at x, over several penalties.

    Implicit and finite differences agree where the problem is smooth and says what is meant;
    the error of the penalty hypergradient falls as 1/γ where the penalty method applies. A
    problem's own ``lower_response`` serves the penalty hypergradient only, so its answers and
    multipliers are checked as well.

    Parameters
    ----------
    problem, x, y0
        As in :func:`hypergradient`.
    penalties : sequence of float
        At least two values of γ, increasing.

    Raises
    ------
    OptionError
        If the penalties are not positive, increasing, and at least two.
    BilevelError
        As in :func:`hypergradient`.
    """
    values = tuple(Constant(penalty).value for penalty in penalties)
    if len(values) < 2 or sorted(set(values)) != list(values):
        raise OptionError(f"penalties={penalties!r}, expected at least two, increasing")
    with at(problem, x, y0) as state:
        require_upper_variable(state)
        kept, through = implicit_terms(problem, state)
        scale = float(np.linalg.norm(kept) + np.linalg.norm(through)) or 1.0
        implicit = kept + through

        def error(other: Array) -> float:
            return float(np.linalg.norm(other - implicit)) / scale

        errors = tuple(error(penalty_gradient(problem, state, value)) for value in values)
        return HypergradientCheck(
            hypergradient=rebuild(x, unflatten(implicit, state.upper.leaves)),
            finite_difference_error=error(finite_differences(problem, state)),
            penalties=values,
            penalty_errors=errors,
            exponent=_exponent(values, errors, exact_response(state.lower).tolerance),
        )


def _exponent(penalties: Sequence[float], errors: Sequence[float], accuracy: float) -> float:
    """Slope in the logarithms, over the errors that the responses' accuracy does not explain."""
    gamma, error = np.array(penalties), np.array(errors)
    told = error > 0.1 * accuracy * gamma  # the last Newton step gains more than that
    if told.sum() < 2:
        return math.nan
    slopes = np.diff(np.log(error[told])) / np.diff(np.log(gamma[told]))
    return float(np.median(slopes))  # one penalty before the active set settles spoils no median
