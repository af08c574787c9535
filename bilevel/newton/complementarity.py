"""Optimality system of a convex quadratic program, solved by exchanging its active set."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from bilevel.newton.arrays import Array, Indices, largest

# Which entries are held at their lower, and which at their upper bound.
ActiveSet = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]

# A pivot below this fraction of the largest marks the working set's system as singular.
_SINGULAR_PIVOT = 1e-13
# Proximal weight for singular systems; refinement removes its effect on consistent ones.
_PROXIMAL = 1e-9
_REFINEMENTS = 6
# A free entry this far outside its interval (relative to the data) is moved to the bound.
_EXCHANGE_TOLERANCE = 1e-12
_STATIONARY = 1e-15
_MULTIPLIER_SHARE = 1e-3
# Curvatures are floored at this fraction of the largest when they serve as scales.
_FLAT = 1e-3


@dataclasses.dataclass(frozen=True)
class QuadraticProgram:
    r"""A convex quadratic program with a penalty or constraint on each row.

    .. math:: \min_{l\le d\le u} \tfrac12 d^\top P d + q^\top d
              + \sum_i \max_{\lambda_i\in[\underline\lambda_i,\,\overline\lambda_i]}
                \lambda_i (J d + r)_i

    The multiplier interval of a row says what it is: :math:`[0,\infty)` an inequality,
    :math:`(-\infty,\infty)` an equality, :math:`[0,\rho]` and :math:`[-\rho,\rho]` their exact
    penalties (elastic constraints).

    Attributes
    ----------
    hessian : (n, n) array
        P, positive semidefinite.
    gradient : (n,) array
        q.
    jacobian : (k, n) array
        J.
    residual : (k,) array
        r.
    lower, upper : (n,) array
        Bounds on d.
    dual_lower, dual_upper : (k,) array
        The multiplier intervals.
    """

    hessian: Array
    gradient: Array
    jacobian: Array
    residual: Array
    lower: Array
    upper: Array
    dual_lower: Array
    dual_upper: Array


class ComplementaritySystem:
    r"""Find w = (d, λ) in a box with :math:`w = \Pi_{[lo,hi]}(w - F(w))`, symmetrically scaled.

    The optimality conditions of a :class:`QuadraticProgram` treat steps and multipliers alike:
    each has an interval, and its component of :math:`F(w) = (Pd + q + J^\top\lambda,\ -(Jd + r))`
    is zero inside, non-negative at the lower and non-positive at the upper end. Rows and columns
    are scaled so that P has a unit diagonal and each row of J unit norm in that metric; distance
    and gradient then share one unit, and :math:`w - F(w)` predicts the active set.

    Attributes
    ----------
    matrix : (n + k, n + k) array
        The scaled symmetric :math:`\begin{pmatrix}P & J^\top\\ J & 0\end{pmatrix}`.
    offset : (n + k,) array
        The scaled (q, r).
    lower, upper : (n + k,) array
        The scaled box.
    size : int
        Number n of steps among the unknowns.
    """

    def __init__(self, program: QuadraticProgram) -> None:
        n, k = program.gradient.size, program.residual.size
        self.size = n
        self._scale = scale = np.empty(n + k)
        scale[:n] = 1.0 / np.sqrt(_curvatures(program))
        jacobian = program.jacobian * scale[:n]
        norms = np.sqrt(np.einsum("ij,ij->i", jacobian, jacobian))
        norms[norms == 0.0] = 1.0
        scale[n:] = 1.0 / norms
        jacobian *= scale[n:, None]
        self.matrix = np.zeros((n + k, n + k))
        self.matrix[:n, :n] = program.hessian * scale[:n] * scale[:n, None]
        self.matrix[n:, :n] = jacobian
        self.matrix[:n, n:] = jacobian.T
        self.offset = np.concatenate((program.gradient, program.residual)) * scale
        lower = np.concatenate((program.lower, program.dual_lower))
        upper = np.concatenate((program.upper, program.dual_upper))
        self._bounds = lower, upper
        self.lower, self.upper = lower / scale, upper / scale
        self._sign = np.ones(n + k)
        self._sign[n:] = -1.0
        self._pinned = self.lower == self.upper
        self._magnitude = np.abs(self.offset)
        self._magnitude[:n] = self._magnitude[:n].max(initial=0.0)

    def scaled(self, step: Array, multipliers: Array) -> Array:
        """The unknown w of a step and its multipliers."""
        return np.concatenate((step, multipliers)) / self._scale

    def unscaled(self, unknown: Array) -> tuple[Array, Array]:
        """The step and the multipliers of an unknown w; those at a bound are exactly there."""
        w = unknown * self._scale
        w = np.where(unknown <= self.lower, self._bounds[0], w)
        w = np.where(unknown >= self.upper, self._bounds[1], w)
        return w[: self.size], w[self.size :]

    def active_set(self, unknown: Array, interior: bool = False) -> ActiveSet:
        """The entries that ``unknown`` and its gradient predict to be at a bound.

        At an interior point, steps and slacks are first brought to the magnitude of multipliers and
        gradients, which the scaling alone does not where P is negligible.
        """
        image = self._image(unknown)
        if interior:
            n = self.size
            primal = max(largest(unknown[:n]), largest(image[n:]), 1e-300)
            dual = max(largest(unknown[n:]), largest(image[:n]), 1e-300)
            image *= (dual / primal) ** -self._sign
        trial = unknown - image
        at_upper = trial >= self.upper
        at_upper &= ~self._pinned
        return (trial <= self.lower) | self._pinned, at_upper

    def residual(self, unknown: Array) -> float:
        r"""Natural residual :math:`\|w - \Pi(w - F(w))\|_\infty`, relative to the data."""
        projected = np.minimum(np.maximum(unknown - self._image(unknown), self.lower), self.upper)
        return largest((unknown - projected) / self._units(unknown))

    def exchange(self, unknown: Array, active: ActiveSet, limit: int) -> tuple[Array, float]:
        r"""Improve w by the primal-dual active-set method (a semismooth Newton method).

        Each pass holds the entries of the active set at their bounds, solves the linear system of
        the others, and moves every entry that has the wrong sign. It ends at a solution, when an
        active set returns, or after ``limit`` passes.

        Returns
        -------
        unknown : (n + k,) array
            The visited w (projected on its box) with the least natural residual.
        residual : float
            That residual; infinite if the first system has no solution.

        Source: Hintermueller, Ito and Kunisch, SIAM J. Optim. 13 (2002), Algorithm 2.1.
        """
        lower, upper = self.lower, self.upper
        at_lower, at_upper = active
        w = best = unknown
        best_residual = np.inf
        visited: set[bytes] = set()
        while len(visited) < limit:
            key = at_lower.tobytes() + at_upper.tobytes()
            if key in visited:
                break
            visited.add(key)
            solved = self._solve_free(
                np.where(at_lower, lower, np.where(at_upper, upper, w)),
                np.flatnonzero(~(at_lower | at_upper)),
            )
            if solved is None:
                break
            w = solved
            inside = np.minimum(np.maximum(w, lower), upper)
            residual = self.residual(inside)
            if residual < best_residual:
                best, best_residual = inside, residual
            if residual <= _STATIONARY:
                break
            slack = _EXCHANGE_TOLERANCE * self._units(w)
            image = self._image(w)
            stay_lower = at_lower & ((image >= -slack) | self._pinned)
            stay_upper = at_upper & (image <= slack)
            at_lower, at_upper = (
                stay_lower | (~at_lower & (w < lower - slack)),
                stay_upper | (~at_upper & (w > upper + slack)),
            )
        return best, best_residual

    def _image(self, w: Array) -> Array:
        image: Array = self.matrix @ w
        image += self.offset
        image *= self._sign
        return image

    def _solve_free(self, w: Array, free: Indices) -> Array | None:
        """Solve the equations of the free entries, the others held; ``None`` if they have none."""
        if free.size == 0:
            return w
        block = self.matrix[free[:, None], free]
        units = self._units(w)[free]
        for proximal in (0.0, _PROXIMAL):
            if proximal:
                block.flat[:: free.size + 1] += proximal * self._sign[free]
            factor, pivots, info = lapack.dgetrf(block)
            diagonal = np.abs(factor.diagonal())
            if info == 0 and diagonal.min() > _SINGULAR_PIVOT * diagonal.max():
                break
        else:
            return None
        error = np.inf
        for _ in range(_REFINEMENTS):
            image = (self.matrix @ w + self.offset)[free]
            previous, error = error, largest(image / units)
            if error <= _STATIONARY or error > 0.5 * previous:
                break
            w[free] -= lapack.dgetrs(factor, pivots, image)[0]
        return w

    def _units(self, w: Array) -> Array:
        """What each entry, and its component of F, is small in comparison with."""
        # Multipliers count little: nearly dependent rows would make them, and the units, huge.
        size = max(largest(w[: self.size]), _MULTIPLIER_SHARE * largest(w[self.size :]), 1e-300)
        units: Array = np.maximum(self._magnitude, size)
        return units


def _curvatures(program: QuadraticProgram) -> Array:
    """The diagonal of P, with a floor of the program's own scale where P is (nearly) flat."""
    diagonal = np.diagonal(program.hessian)
    top = float(diagonal.max(initial=0.0))
    if top <= 0.0:
        top = largest(program.gradient) or 1.0
    floored: Array = np.maximum(diagonal, _FLAT * top)
    return floored
