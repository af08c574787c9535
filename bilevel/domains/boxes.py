"""Sets described entry by entry: the whole space, boxes, the non-negative orthant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bilevel.domains.base import Domain, entry, number_or_tensor
from bilevel.errors import DomainError


@dataclass(frozen=True, eq=False)
class Reals(Domain):
    r"""The whole space :math:`\mathbb{R}^n`: no restriction."""

    def project(self, value: Tensor) -> Tensor:
        """``value`` itself."""
        return value

    def project_(self, value: Tensor) -> None:
        """Leave ``value`` as it is."""

    def distance(self, value: Tensor) -> float:
        """Zero."""
        return 0.0

    def validate(self, value: Tensor, name: str) -> None:
        """Accept every start."""

    def _violation(self, value: Tensor, name: str, tolerance: float) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Box(Domain):
    r"""Bounds on each entry: :math:`\{v : l \le v \le u\}`.

    .. math:: \Pi(v) = \min(\max(v, l), u)

    Parameters
    ----------
    low, high : float or Tensor, optional
        :math:`l` and :math:`u`, broadcast to the variable's shape. ``None`` or an infinite entry
        leaves that side open; equal entries fix an entry of the variable.

    Raises
    ------
    DomainError
        If the box is empty (``low > high`` anywhere), or a bound is NaN or not a number.

    Examples
    --------
    >>> Box(0.0, torch.tensor([1.0, 2.0])).project(torch.tensor([-1.0, 3.0]))
    tensor([0., 2.])
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def __post_init__(self) -> None:
        low = number_or_tensor("Box.low", -math.inf if self.low is None else self.low)
        high = number_or_tensor("Box.high", math.inf if self.high is None else self.high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        _require_a_point(low, high)

    @torch.no_grad()
    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the box; see :class:`Box`."""
        projected = value.clone()
        self.project_(projected)
        return projected

    @torch.no_grad()
    def project_(self, value: Tensor) -> None:
        """Clamp ``value`` in place, without allocating."""
        low, high = self._constant("low", value), self._constant("high", value)
        if isinstance(low, float) and isinstance(high, float):
            value.clamp_(low, high)
        else:  # torch does not clamp between a number and a tensor
            value.clamp_(min=low)
            value.clamp_(max=high)

    def bounds(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The box's sides, broadcast to the shape of ``value``."""
        low, high = self._constant("low", value), self._constant("high", value)
        return _like(value, low), _like(value, high)

    @torch.no_grad()
    def sample(self, value: Tensor, generator: torch.Generator) -> Tensor:
        """A point uniform in the entries bounded on both sides; the others as :class:`Domain`."""
        low, high = self.bounds(value)
        width = high - low
        bounded = torch.isfinite(width)
        uniform = torch.rand(
            value.shape, generator=generator, dtype=value.dtype, device=generator.device
        )
        point = torch.where(bounded, low + width * uniform.to(value.device), value)
        if not bool(bounded.all()):
            point = torch.where(bounded, point, super().sample(value, generator))
        return self.project(point)

    def _violation(self, value: Tensor, name: str, tolerance: float) -> str | None:
        low, high = self.bounds(value)
        if value.numel() == 0:
            return None
        below = low - value - tolerance * low.abs().clamp(min=1.0)
        above = value - high - tolerance * high.abs().clamp(min=1.0)
        excess = torch.maximum(below, above).reshape(-1)
        worst = int(excess.argmax())
        if float(excess[worst]) <= 0:
            return None
        found = float(value.reshape(-1)[worst])
        side, bound = (
            ("below the lower", low)
            if float(below.reshape(-1)[worst]) > 0
            else ("above the upper", high)
        )
        return (
            f"{entry(name, value, worst)} = {found:.9g} is {side} bound "
            f"{float(bound.reshape(-1)[worst]):.9g}"
        )


@dataclass(frozen=True, eq=False)
class NonNegative(Box):
    r"""The non-negative orthant :math:`\{v : v \ge 0\}`, with :math:`\Pi(v) = \max(v, 0)`."""

    low: float | Tensor | None = field(default=0.0, init=False, repr=False)
    high: float | Tensor | None = field(default=None, init=False, repr=False)


def _like(value: Tensor, constant: float | Tensor) -> Tensor:
    if isinstance(constant, Tensor):
        return constant.clone(memory_format=torch.contiguous_format)
    return torch.full_like(value, constant)


def _require_a_point(low: float | Tensor, high: float | Tensor) -> None:
    lower, upper = (torch.as_tensor(side).to("cpu", torch.float64) for side in (low, high))
    try:  # a side at the wrong infinity leaves no real number between
        empty = (lower > upper) | (lower == math.inf) | (upper == -math.inf)
    except RuntimeError:
        raise DomainError(
            f"Box.low has shape {tuple(lower.shape)} and Box.high {tuple(upper.shape)}; "
            "give shapes that broadcast to the variable's"
        ) from None
    if bool(empty.any()):
        lower, upper = lower.expand_as(empty), upper.expand_as(empty)
        first = int(empty.reshape(-1).to(torch.int8).argmax())
        raise DomainError(
            f"Box is empty: {entry('low', lower, first)} = {float(lower.reshape(-1)[first]):.9g}, "
            f"{entry('high', upper, first)} = {float(upper.reshape(-1)[first]):.9g}; "
            "expected low <= high with a real number between"
        )
