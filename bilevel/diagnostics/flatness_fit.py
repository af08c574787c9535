"""Fitting the flatness definition's constants to measured distances and differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bilevel.calculus import Array
from bilevel.errors import NotApplicableError, OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Exponents tried.
_EXPONENTS = np.linspace(1.0, 2.0, 101)
#: Mean slacks this close, relative to the largest difference, count as equal.
_EQUAL = 1e-9


@dataclass(frozen=True)
class FlatnessFit:
    r"""Constants of the flatness definition over a set of points, and what follows from them.

    .. math:: |f(x, y_g(x)) - f(x, y)| \le c\,\|y_g(x) - y\|^\alpha + \delta

    With α > 1 and small δ, theory bounds the term that PBGD-Free omits by
    :math:`O(\delta^{(\alpha-1)/\alpha})` at a penalty :math:`\gamma \asymp
    \delta^{-(2-\alpha)/\alpha}`, so that the method ends near a stationary point; with α = 1 the
    omitted term is of order one. These are orders, whose constants the definition does not give.

    The definition is about values of f, and the term c dᵅ can hide an omitted term of order one:
    for quadratic f and g, all points at one penalty satisfy α = 2, δ = 0, with c of the order of
    γ. The omitted term itself (:func:`bilevel.diagnostics.bias`) is the direct measure.

    Attributes
    ----------
    c, alpha, delta : float
        The constants. Among α between 1 and 2 the one whose least upper envelope has the least mean
        slack (the largest such α where several do).
    mean_slack : float
        Mean of :math:`c d^\alpha + \delta` minus the difference, at that α.
    distances, differences : array
        The points d and |f(x, y_g) − f(x, y)|.
    failures : int
        Points that could not be measured, because a response was not reached.
    largest_omitted : float
        Largest omitted term over the points; NaN where it was not measured.

    References
    ----------
    Jiang et al. 2025, arXiv:2507.20400, Definition 1 and Theorem 3.
    """

    c: float
    alpha: float
    delta: float
    mean_slack: float
    distances: Array = field(repr=False)
    differences: Array = field(repr=False)
    failures: int = 0
    largest_omitted: float = math.nan

    @property
    def flat(self) -> bool:
        """Whether α > 1, the regime that the theory of PBGD-Free covers."""
        return self.alpha > 1.0

    @property
    def omitted_order(self) -> float:
        r""":math:`\delta^{(\alpha-1)/\alpha}`, the order of the omitted term; 1 for α = 1."""
        return float(self.delta ** ((self.alpha - 1.0) / self.alpha))

    @property
    def suggested_penalty(self) -> float:
        r""":math:`\delta^{-(2-\alpha)/\alpha}`, the order of the γ that balances the bounds.

        Infinite where any larger one is better (δ = 0), NaN where none helps (α = 1).
        """
        if not self.flat:
            return math.nan
        exponent = (2.0 - self.alpha) / self.alpha
        if self.delta == 0.0 and exponent > 0.0:
            return math.inf
        return float(self.delta**-exponent)

    def bound(self, distances: ArrayLike) -> Array:
        r""":math:`c d^\alpha + \delta` at some distances."""
        values: Array = self.c * np.asarray(distances, dtype=np.float64) ** self.alpha + self.delta
        return values

    def plot(self) -> Figure:
        """Draw the points under their envelope."""
        from bilevel.plotting import plot_flatness

        return plot_flatness(self)

    def __str__(self) -> str:
        verdict = "α > 1: flat" if self.flat else "α = 1: not flat, the omitted term is O(1)"
        d = self.distances
        lines = [
            "flatness |f(x, y_g) - f(x, y)| <= c ‖y_g - y‖^α + δ",
            f"c                      {self.c:.3g}",
            f"α                      {self.alpha:.2f}  ({verdict})",
            f"δ                      {self.delta:.3g}",
            f"mean slack             {self.mean_slack:.3g}",
            f"points                 {len(d)}, ‖y_g - y‖ from {d.min():.2g} to {d.max():.2g}"
            + (f", {self.failures} not measured" if self.failures else ""),
        ]
        if self.flat:
            lines += [
                f"δ^((α-1)/α)            {self.omitted_order:.3g}  (order of the omitted term)",
                f"δ^(-(2-α)/α)           {self.suggested_penalty:.3g}  (order of the best penalty)",
            ]
        if math.isnan(self.largest_omitted):
            lines.append("omitted term           not measured; c d^α can hide it: see bias()")
        else:
            lines.append(
                f"largest omitted term   {self.largest_omitted:.3g}  (measured, not fitted)"
            )
        return "\n".join(lines)


def fit_flatness(distances: ArrayLike, differences: ArrayLike) -> FlatnessFit:
    r"""Fit (c, α, δ) to points (d_i, e_i) as their least upper envelope.

    For each α on a grid from 1 to 2 in steps of 0.01 the linear program

    .. math:: \min_{c, \delta \ge 0}\; \frac1N \sum_i (c\,d_i^\alpha + \delta - e_i)
        \quad\text{s.t.}\quad c\,d_i^\alpha + \delta \ge e_i

    gives the envelope with the least mean slack, and α is the one for which that is least.

    Parameters
    ----------
    distances, differences : array_like
        d_i = ‖y_g − y‖ and e_i = |f(x, y_g) − f(x, y)|, one-dimensional, of the same length.

    Raises
    ------
    OptionError
        If they are not finite, non-negative and of one length.
    NotApplicableError
        If there are fewer than three distinct positive distances: these fit any α.
    """
    d, e = _points("distances", distances), _points("differences", differences)
    if d.shape != e.shape:
        raise OptionError(f"{len(d)} distances and {len(e)} differences, expected one of each")
    if len(np.unique(d[d > 0])) < 3:
        raise NotApplicableError(
            f"{len(np.unique(d[d > 0]))} distinct positive distances do not determine (c, α, δ): "
            "collect at least three, by Flatness(every=) smaller than the run or more factors="
        )
    reach, height = float(d.max()), float(e.max()) or 1.0
    envelopes = [_envelope((d / reach) ** alpha, e / height) for alpha in _EXPONENTS]
    slacks = np.array([slack for *_, slack in envelopes])
    best = int(np.flatnonzero(slacks <= slacks.min() + _EQUAL).max())
    c, delta, slack = envelopes[best]
    alpha = float(_EXPONENTS[best])
    return FlatnessFit(
        c=c * height / reach**alpha,
        alpha=alpha,
        delta=delta * height,
        mean_slack=slack * height,
        distances=d,
        differences=e,
    )


def _envelope(u: Array, e: Array) -> tuple[float, float, float]:
    """The least line c u + δ above the points: c, δ and the mean slack."""
    from scipy.optimize import linprog

    mean = float(u.mean())
    found = linprog(
        [mean, 1.0],
        A_ub=-np.column_stack([u, np.ones_like(u)]),
        b_ub=-e,
        bounds=[(0.0, None), (0.0, None)],
        method="highs",
    )
    c, delta = (float(each) for each in np.asarray(found.x))
    return c, delta, c * mean + delta - float(e.mean())


def _points(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
        raise OptionError(f"{name} must be a one-dimensional array of finite numbers >= 0")
    return array
