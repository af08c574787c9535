"""Balls around a centre, in the Euclidean and in the absolute-value norm."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.domains.base import Domain, number_or_tensor, positive
from bilevel.domains.sharding import on_whole_tensor
from bilevel.domains.simplex import project_onto_simplex
from bilevel.errors import DomainError, NotApplicableError


@dataclass(frozen=True, eq=False)
class _NormBall(Domain):
    radius: float
    center: float | Tensor = 0.0

    def __post_init__(self) -> None:
        kind = type(self).__name__
        object.__setattr__(self, "radius", positive(f"{kind}.radius", self.radius))
        center = number_or_tensor(f"{kind}.center", self.center)
        if not bool(torch.isfinite(torch.as_tensor(center)).all()):
            raise DomainError(f"{kind}.center is {self.center!r}, expected finite entries")
        object.__setattr__(self, "center", center)

    @on_whole_tensor
    @torch.no_grad()
    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the ball."""
        center = self._constant("center", value)
        if value.numel() == 0:
            return value.clone()
        offset = value - center
        outside = self._norm(offset) > self.radius
        return torch.where(outside, self._nearest_on_sphere(offset) + center, value)

    def _violation(self, value: Tensor, name: str, tolerance: float) -> str | None:
        center = self._constant("center", value)
        if value.numel() == 0:
            return None
        norm = float(self._norm(value - center))
        # rounding the entries of the value moves it by a fraction of its distance from the origin
        reach = float(self._norm(torch.zeros_like(value) + center))
        if norm <= self.radius + tolerance * (self.radius + reach):
            return None
        return f"its distance from the center is {norm:.9g}, above the radius {self.radius:.9g}"

    @abstractmethod
    def _norm(self, offset: Tensor) -> Tensor: ...

    @abstractmethod
    def _nearest_on_sphere(self, offset: Tensor) -> Tensor:
        """The nearest point of norm ``radius`` to an offset of a larger norm."""


@dataclass(frozen=True, eq=False)
class Ball(_NormBall):
    r"""The Euclidean ball :math:`\{v : \|v - c\|_2 \le r\}`.

    .. math:: \Pi(v) = c + \min\{1, r / \|v - c\|_2\}\,(v - c)

    Parameters
    ----------
    radius : float
        :math:`r > 0`.
    center : float or Tensor
        :math:`c`, broadcast to the variable's shape.

    Raises
    ------
    DomainError
        If the radius is not positive and finite, or the centre not finite.
    """

    def constraints(self, value: Tensor) -> tuple[Tensor, None]:
        r""":math:`\|v - c\|_2^2 - r^2 \le 0`."""
        offset = value - self._constant("center", value)
        return (offset.square().sum() - self.radius**2).reshape(1), None

    def _norm(self, offset: Tensor) -> Tensor:
        largest, unit = _scaled(offset)
        length: Tensor = torch.linalg.vector_norm(unit)
        return torch.where(largest > 0, largest * length, largest)

    def _nearest_on_sphere(self, offset: Tensor) -> Tensor:
        unit = _scaled(offset)[1]
        length: Tensor = torch.linalg.vector_norm(unit)
        return unit * (self.radius / length)


@dataclass(frozen=True, eq=False)
class L1Ball(_NormBall):
    r"""The ball :math:`\{v : \|v - c\|_1 \le r\}`, whose projection is sparse in :math:`v - c`.

    Outside it, :math:`\Pi(v) = c + \operatorname{sign}(v - c) \odot \Pi_\Delta(|v - c|)` with the
    simplex :math:`\Delta` of total :math:`r`.

    Parameters
    ----------
    radius : float
        :math:`r > 0`.
    center : float or Tensor
        :math:`c`, broadcast to the variable's shape.

    Raises
    ------
    DomainError
        If the radius is not positive and finite, or the centre not finite.

    References
    ----------
    Duchi, Shalev-Shwartz, Singer, Chandra 2008, "Efficient projections onto the l1-ball for
    learning in high dimensions", section 4.
    """

    def constraints(self, value: Tensor) -> tuple[None, None]:
        """Not available: the l1 ball has corners.

        Raises
        ------
        NotApplicableError
            Always.
        """
        raise NotApplicableError(
            "L1Ball has no smooth description, so a method that takes its constraints cannot use "
            "it: use a first-order solver, which projects (GradientDescent as the lower-level "
            "response, a torch.optim optimizer for the outer step)"
        )

    def _norm(self, offset: Tensor) -> Tensor:
        return offset.abs().sum()

    def _nearest_on_sphere(self, offset: Tensor) -> Tensor:
        magnitudes = project_onto_simplex(offset.abs().reshape(-1), self.radius)
        return torch.copysign(magnitudes.reshape(offset.shape), offset)


def _scaled(offset: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude and the offset over it: squares then neither overflow nor vanish."""
    largest = offset.abs().amax()
    return largest, offset / largest
