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
_WEIGHTS = (1.0, 1e2, 1e4)


@dataclasses.dataclass(frozen=True)
class ConvexModel:
    r"""A positive semidefinite stand-in for the Hessian.

    Attributes
    ----------
    matrix : (n, n) array
        The Hessian, or the Hessian with :math:`\sigma N^\top N` added (N the normals of the working
        constraints), or with its negative eigenvalues made positive.
    weight : float
        :math:`\sigma`; it leaves the Newton step as it is while the working constraints stay
        active, and moves their multipliers by :math:`\sigma N d`.
    newton : bool
        Whether that step is Newton's (``False`` if eigenvalues were changed).
    """

    matrix: Array
    weight: float
    newton: bool


def convexify(hessian: Array, working_normals: Callable[[], Array]) -> ConvexModel:
    r"""Change ``hessian`` as little as a convex model needs.

    A Hessian that is positive definite on the null space of the working constraints' normals (shape
    ``(a, n)``) is only augmented, which keeps Newton's quadratic convergence at a strict local
    minimum; any other has its eigenvalues replaced by their absolute values, which descends from a
    saddle.
    """
    if _convex(hessian):
        return ConvexModel(hessian, 0.0, newton=True)
    largest = float(np.abs(hessian).max())
    normals = working_normals()
    if normals.size:
        unit = largest / float((normals * normals).sum(axis=1).max())
        for factor in _WEIGHTS:
            augmented = hessian + factor * unit * (normals.T @ normals)
            if _positive(augmented, -_FLAT * largest):
                return ConvexModel(augmented, factor * unit, newton=True)
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(np.abs(values), _FLAT * np.abs(values).max())
    return ConvexModel((vectors * values) @ vectors.T, 0.0, newton=False)


def negative_curvature(hessian: Array, normals: Array) -> tuple[float, Array] | None:
    """The least eigenvalue of ``hessian`` on the null space of ``normals``, and its vector.

    ``None`` if there is no noticeably negative one.
    """
    if _convex(hessian):
        return None
    basis = np.eye(hessian.shape[0])
    if normals.size:
        _, singular, rows = np.linalg.svd(normals)
        rank = int((singular > 1e-10 * singular.max(initial=0.0)).sum())
        basis = rows[rank:].T
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
