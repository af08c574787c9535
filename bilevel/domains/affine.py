"""Solutions of a linear system."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.domains.base import Domain
from bilevel.domains.sharding import on_whole_tensor
from bilevel.errors import DomainError


@dataclass(frozen=True, eq=False)
class AffineSubspace(Domain):
    r"""The affine subspace :math:`\{v : A v = b\}`.

    With :math:`Q` an orthonormal basis of the row space and any solution :math:`p`,

    .. math:: \Pi(v) = v - Q\,(Q^\top v - Q^\top p),

    from one QR factorisation of :math:`A^\top` with column pivoting, made in double precision when
    the set is built. Redundant rows that agree with the others are dropped.

    Parameters
    ----------
    A : Tensor, shape (m, n)
        One equation a row, over the n entries of the variable in row-major order.
    b : Tensor, shape (m,)
        The right-hand sides.

    Raises
    ------
    DomainError
        If the shapes do not fit, an entry is not finite, or the equations contradict each other.
    """

    A: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        _check_system(self.A, self.b)
        object.__setattr__(self, "A", self.A.detach().clone())
        object.__setattr__(self, "b", self.b.detach().clone())
        rows, basis, coordinates = _factorise(self.A, self.b)
        object.__setattr__(self, "_rows", self.A[torch.from_numpy(rows)])
        object.__setattr__(self, "_sides", self.b[torch.from_numpy(rows)])
        object.__setattr__(self, "_basis", torch.from_numpy(basis))
        object.__setattr__(self, "_coordinates", torch.from_numpy(coordinates))

    @on_whole_tensor
    @torch.no_grad()
    def project(self, value: Tensor) -> Tensor:
        """The nearest solution; see :class:`AffineSubspace`."""
        self._require_length(value)
        basis, coordinates = self._tensor("_basis", value), self._tensor("_coordinates", value)
        vector = value.reshape(-1)
        for _ in range(2):  # the second pass removes the rounding of the first, a long move's error
            vector = vector - basis @ (vector @ basis - coordinates)
        return vector.reshape(value.shape)

    def constraints(self, value: Tensor) -> tuple[None, Tensor]:
        r""":math:`A v - b = 0`, without redundant rows."""
        self._require_length(value)
        rows, sides = self._tensor("_rows", value), self._tensor("_sides", value)
        return None, rows @ value.reshape(-1) - sides

    def _violation(self, value: Tensor, name: str, tolerance: float) -> str | None:
        self._require_length(value)
        rows, sides, vector = self._tensor("A", value), self._tensor("b", value), value.reshape(-1)
        left = rows @ vector
        scale = rows.abs() @ vector.abs() + sides.abs()
        excess = (left - sides).abs() - tolerance * scale
        worst = int(excess.argmax())
        if float(excess[worst]) <= 0:
            return None
        return (
            f"row {worst} of A gives {float(left[worst]):.9g}, "
            f"expected b[{worst}] = {float(sides[worst]):.9g}"
        )

    def _require_length(self, value: Tensor) -> None:
        if self.A.shape[1] != value.numel():
            raise DomainError(
                f"AffineSubspace.A has {self.A.shape[1]} columns, but the variable of shape "
                f"{tuple(value.shape)} has {value.numel()} entries; expected one column an entry"
            )


def _check_system(A: Tensor, b: Tensor) -> None:
    expected: list[tuple[str, object, int]] = [("A", A, 2), ("b", b, 1)]
    for name, tensor, dimensions in expected:
        label = f"AffineSubspace.{name}"
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            raise DomainError(f"{label} is {tensor!r}, expected a torch.Tensor of real numbers")
        if tensor.ndim != dimensions:
            raise DomainError(
                f"{label} has shape {tuple(tensor.shape)}, expected {dimensions} dimensions"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise DomainError(f"{label} holds NaN or infinite entries")
    if A.shape[0] != b.shape[0] or A.numel() == 0:
        raise DomainError(
            f"AffineSubspace.A has shape {tuple(A.shape)} and b {tuple(b.shape)}; expected (m, n) "
            "and (m,) with m, n >= 1"
        )


def _factorise(
    A: Tensor, b: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Indices of independent rows, an orthonormal basis Q of their span, Q'p for a solution p."""
    precisions = [torch.finfo(t.dtype).eps for t in (A, b) if t.is_floating_point()]
    eps = max(precisions, default=float(np.finfo(np.float64).eps))
    matrix = A.detach().to("cpu", torch.float64).numpy()
    sides = b.detach().to("cpu", torch.float64).numpy()
    # rows of unit length: the units of an equation should not decide whether it counts
    lengths = np.linalg.norm(matrix, axis=1)
    lengths[lengths == 0.0] = 1.0
    matrix, sides = matrix / lengths[:, None], sides / lengths
    basis, triangle, order = scipy.linalg.qr(matrix.T, mode="economic", pivoting=True)
    pivots = np.abs(np.diag(triangle))
    # redundant rows come rounded, so they leave a pivot of some roundings of a unit row
    rank = int(np.sum(pivots > 100 * eps * np.sqrt(max(matrix.shape))))
    independent = order[:rank]
    basis = np.ascontiguousarray(basis[:, :rank])
    coordinates = scipy.linalg.solve_triangular(
        triangle[:rank, :rank], sides[independent], trans="T"
    )
    residual = np.abs(matrix @ (basis @ coordinates) - sides)
    worst = int(residual.argmax())
    if residual[worst] > np.sqrt(eps) * max(1.0, float(np.abs(sides).max())):
        raise DomainError(
            f"AffineSubspace is empty: row {worst} contradicts the others (A v = b leaves a "
            f"residual of {residual[worst] * lengths[worst]:.3g} in it); check A and b"
        )
    return np.sort(independent).astype(np.int64), basis, coordinates
