"""Convex models of the Lagrangian's Hessian, and directions of negative curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import lapack

from bilevel.newton.arrays import Array

# Eigenvalues above minus this share of the largest entry (times n) are zero up to rounding.
_ROUNDING = 1e-13
# Flipped eigenvalues are floored at this share of the largest.
_FLAT = 1e-6
# Negative curvature weaker than this share of the Hessian is not worth a step.
_SADDLE = 1e-7


@dataclasses.dataclass(frozen=True)
class ConvexModel:
    r"""A positive semidefinite stand-in for the Hessian.

    Attributes
    ----------
    matrix : (n, n) array
        The Hessian, or the Hessian changed across the working constraints only, or with its
        negative eigenvalues made positive.
    newton : bool
        Whether its step is Newton's while the working constraints stay active (``False`` if
        eigenvalues were changed).
    change : (n, n) array, optional
        ``matrix`` minus the Hessian, where that acts across the working constraints only.
    normals : (a, n) array, optional
        The normals of the working constraints, where there is a ``change``.
    """

    matrix: Array
    newton: bool
    change: Array | None = None
    normals: Array | None = None

    def multiplier_shift(self, step: Array) -> Array:
        r"""What the change adds to the working constraints' multipliers.

        The model's step satisfies :math:`M d + N^\top \mu_M = -\nabla`, Newton's
        :math:`H d + N^\top \mu = -\nabla`, and :math:`(M - H) d` is in the range of
        :math:`N^\top`.
        """
        assert self.change is not None
        assert self.normals is not None
        shift = np.linalg.lstsq(self.normals.T, self.change @ step, rcond=None)[0]
        return np.asarray(shift, dtype=np.float64)


def convexify(hessian: Array, working_normals: Callable[[], Array]) -> ConvexModel:
    r"""Change ``hessian`` as little as a convex model needs.

    With Z a basis of the null space of the working constraints' normals (shape ``(a, n)``) and Y of
    its complement, a Hessian with :math:`Z^\top H Z` positive definite keeps that block and
    :math:`Z^\top H Y`, so that the Newton step at a strict local minimum stays as it is, and has
    :math:`Y^\top H Y` replaced by

    .. math:: Y^\top H Z\,(Z^\top H Z)^{-1} Z^\top H Y + |Y^\top H Y|,

    the Schur complement that makes the whole semidefinite. Any other has the eigenvalues of both
    blocks replaced by their absolute values, which descends from a saddle.
    """
    if _convex(hessian):
        return ConvexModel(hessian, newton=True)
    normals = working_normals()
    if normals.size:
        range_basis, null_basis = _bases(normals)
        inner = null_basis.T @ hessian @ null_basis
        values, vectors = np.linalg.eigh(inner)
        least = len(hessian) * _ROUNDING * float(np.abs(hessian).max())
        if values.size == 0 or values[0] > least:
            root = (vectors.T @ (null_basis.T @ hessian @ range_basis)) / np.sqrt(values)[:, None]
            across = range_basis.T @ hessian @ range_basis
            wanted = root.T @ root + _absolute(across)
            change = range_basis @ (wanted - across) @ range_basis.T
            return ConvexModel(hessian + change, True, change, normals)
        along = null_basis @ _absolute(inner) @ null_basis.T
        across = range_basis.T @ hessian @ range_basis
        return ConvexModel(along + range_basis @ _absolute(across) @ range_basis.T, newton=False)
    return ConvexModel(_absolute(hessian), newton=False)


def _absolute(matrix: Array) -> Array:
    """The matrix with its eigenvalues' absolute values, floored at a share of the largest."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(np.abs(values), _FLAT * np.abs(values).max(initial=0.0))
    absolute: Array = (vectors * values) @ vectors.T
    return absolute


def _bases(normals: Array) -> tuple[Array, Array]:
    """Orthonormal bases of the normals' span and of its complement, as columns."""
    _, singular, rows = np.linalg.svd(normals)
    rank = int((singular > 1e-10 * singular.max(initial=0.0)).sum())
    return rows[:rank].T, rows[rank:].T


def negative_curvature(hessian: Array, normals: Array) -> tuple[float, Array] | None:
    """The least eigenvalue of ``hessian`` on the null space of ``normals``, and its vector.

    ``None`` if there is no noticeably negative one.
    """
    if _convex(hessian):
        return None
    basis = np.eye(hessian.shape[0])
    if normals.size:
        basis = _bases(normals)[1]
    if basis.shape[1] == 0:
        return None
    values, vectors = np.linalg.eigh(basis.T @ hessian @ basis)
    if values[0] >= -_SADDLE * float(np.abs(hessian).max()):
        return None
    return float(values[0]), basis @ vectors[:, 0]


def _convex(hessian: Array) -> bool:
    largest = float(np.abs(hessian).max(initial=0.0))
    return largest == 0.0 or _positive(hessian, hessian.shape[0] * _ROUNDING * largest)


def _positive(matrix: Array, shift: float) -> bool:
    shifted = matrix.copy()
    shifted.flat[:: len(shifted) + 1] += shift
    return int(lapack.dpotrf(shifted, clean=0)[1]) == 0
