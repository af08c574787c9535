"""Which c leave the follower a feasible hyperplane: the distance to them, and the proof."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bilevel.errors import ResponseError
from bilevel.problems.svm.program import Array


class NearestFeasible(NamedTuple):
    """A hyperplane that falls short of the constraints by as little as possible.

    Attributes
    ----------
    z : array of shape (p,)
        The hyperplane.
    shortfall : array of shape (n,)
        By how much it misses each constraint.
    """

    z: Array
    shortfall: Array


def nearest_feasible(
    rows: Array, bound: Array, *, tolerance: float = 1e-9, max_iterations: int = 500
) -> NearestFeasible:
    r"""The r >= 0 of least 2-norm for which some z satisfies :math:`A z + r \ge h`, with that z.

    The residual :math:`r = (h - A z)_+` of the least-squares problem

    .. math::
        \min_z \; \tfrac12 \bigl\| (h - A z)_+ \bigr\|^2

    answers three questions at once. It is zero if and only if :math:`A z \ge h` has a solution.
    Where it has none, optimality gives :math:`A^\top r = 0` with :math:`r \ge 0` and
    :math:`r^\top h = \|r\|^2 > 0`, so r is a Farkas certificate. And with :math:`h = 1 - c`,
    the point c + r is the Euclidean projection of c onto the c that are feasible.

    Parameters
    ----------
    rows : array of shape (n, p)
        A.
    bound : array of shape (n,)
        h.
    tolerance : float
        A residual whose entries are all below it counts as zero, and r = 0 is returned.
    max_iterations : int
        Of Newton's method with exact line search, finite on a convex piecewise quadratic.

    Returns
    -------
    NearestFeasible
        z, which is not unique, and r, which is.

    Raises
    ------
    ResponseError
        The iterations were spent.
    """
    z = np.zeros(rows.shape[1])
    signed = bound.copy()
    for _ in range(max_iterations):
        violated = signed > 0
        if np.max(signed) <= tolerance:
            return NearestFeasible(z, np.zeros_like(bound))
        newton = np.linalg.lstsq(rows[violated], signed[violated], rcond=None)[0]
        change = rows @ newton
        step = _exact_line_search(signed, change)
        z = z + step * newton
        signed = bound - rows @ z
        settled = abs(step - 1) <= 1e-9 and np.array_equal(signed > 0, violated)
        if settled or np.max(np.abs(change)) <= 1e-14 * np.max(np.abs(signed)):
            r = np.zeros_like(bound)
            r[violated] = _complement(rows[violated], signed[violated])
            return NearestFeasible(z, r)
    raise ResponseError(
        f"whether c is feasible was not decided in {max_iterations} Newton iterations: the "
        "training rows are badly scaled; standardise the features"
    )


def _exact_line_search(u: Array, v: Array) -> float:
    """The t > 0 that minimises the convex, piecewise quadratic ||(u - t v)_+||^2."""
    crossing = np.flatnonzero(u * v > 0)
    times = u[crossing] / v[crossing]
    order = np.argsort(times)
    times, crossing = times[order], crossing[order]
    leaves = np.where(v[crossing] > 0, -1.0, 1.0)
    positive = u > 0
    square = v[positive] @ v[positive] + np.cumsum(leaves * v[crossing] ** 2)
    product = u[positive] @ v[positive] + np.cumsum(leaves * u[crossing] * v[crossing])
    past = int(np.searchsorted(square * times - product, 0.0))
    if past == 0:
        return float(u[positive] @ v[positive] / (v[positive] @ v[positive]))
    if square[past - 1] <= 0:
        return float(times[past - 1])
    return float(product[past - 1] / square[past - 1])


def _complement(rows: Array, r: Array) -> Array:
    """Remove what rounding left of r in the range of the rows: a small r is a difference."""
    return np.maximum(r - rows @ np.linalg.lstsq(rows, r, rcond=None)[0], 0.0)
