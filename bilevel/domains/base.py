"""What every domain offers, and the constants it is defined by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bilevel.domains.sharding import is_sharded, sharded_like, whole
from bilevel.errors import DomainError

START_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Domain(ABC):
    r"""A closed convex set :math:`S` with a cheap Euclidean projection.

    A tensor of any shape is one vector :math:`v` of all its entries, and its projection is

    .. math:: \Pi(v) = \operatorname*{arg\,min}_{w \in S} \|w - v\|_2 .

    Constants are converted to the variable's dtype and device once for each such pair. Only
    :meth:`constraints` records gradients. NaN entries stay NaN: a projection masks no failure.
    """

    _moved: dict[tuple[str, torch.dtype, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @abstractmethod
    def project(self, value: Tensor) -> Tensor:
        """The point of the set nearest to ``value``, a tensor of the same shape.

        Raises
        ------
        DomainError
            If the set's constants do not fit the shape of ``value``.
        """

    @torch.no_grad()
    def project_(self, value: Tensor) -> None:
        """Replace ``value`` by its projection, in place."""
        value.copy_(self.project(value))

    @torch.no_grad()
    def distance(self, value: Tensor) -> float:
        r"""The residual :math:`\|v - \Pi(v)\|_\infty`."""
        if value.numel() == 0:
            return 0.0
        return float(whole(value - self.project(value)).abs().max())

    def bounds(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of each entry, infinite where there is none.

        Together with :meth:`constraints` they describe the set exactly and without redundancy.

        Returns
        -------
        low, high : Tensor
            New tensors with the shape, dtype and device of ``value``.
        """
        return torch.full_like(value, -math.inf), torch.full_like(value, math.inf)

    def constraints(self, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        r"""The part of the set that :meth:`bounds` leaves out, differentiable in ``value``.

        Returns
        -------
        inequalities, equalities : Tensor or None
            1-d tensors: the set is where the first is :math:`\le 0` and the second :math:`= 0`.

        Raises
        ------
        NotApplicableError
            If the set has no smooth description.
        """
        return None, None

    @torch.no_grad()
    def sample(self, value: Tensor, generator: torch.Generator) -> Tensor:
        r"""A random point of the set, for restarts.

        The projection of :math:`v + \max(1, |v|) \odot \xi` with standard normal :math:`\xi`,
        drawn on the generator's device, so that a seed gives one point on every device.

        Parameters
        ----------
        value : Tensor
            The point :math:`v` to start from; gives shape, dtype and device.
        generator : torch.Generator
            The source of randomness.
        """
        noise = torch.randn(
            value.shape, generator=generator, dtype=value.dtype, device=generator.device
        )
        return self.project(value + value.abs().clamp(min=1.0) * noise.to(value.device))

    @torch.no_grad()
    def validate(self, value: Tensor, name: str) -> None:
        r"""Check that the set fits a variable and contains its start.

        The start may lie outside by rounding: by a relative :math:`10^{-6}`, or eight units of
        rounding in half precision.

        Parameters
        ----------
        value : Tensor
            The start.
        name : str
            What the caller calls it, for the message.

        Raises
        ------
        DomainError
            If the constants do not fit the shape of ``value``, or if it lies outside.
        """
        value = whole(value)
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            worst = int(finite.reshape(-1).to(torch.int8).argmin())
            raise DomainError(
                f"{entry(name, value, worst)} is {float(value.reshape(-1)[worst])}; "
                "a start must be finite"
            )
        tolerance = max(START_TOLERANCE, 8 * torch.finfo(value.dtype).eps)
        violation = self._violation(value, name, tolerance)
        if violation is not None:
            raise DomainError(
                f"{name} lies outside its domain {type(self).__name__}: {violation}; "
                f"start from domain.project({name})"
            )

    @abstractmethod
    def _violation(self, value: Tensor, name: str, tolerance: float) -> str | None:
        """What keeps ``value`` outside by more than a relative tolerance, or ``None``."""

    def _constant(self, name: str, value: Tensor) -> float | Tensor:
        """The constant of this name, ready to be combined with ``value``."""
        constant = getattr(self, name)
        if isinstance(constant, Tensor):
            moved = self._tensor(name, value)
            try:
                expanded = moved.expand(value.shape)
            except RuntimeError:
                raise DomainError(
                    f"{type(self).__name__}.{name} has shape {tuple(moved.shape)}, which does not "
                    f"broadcast to the variable's shape {tuple(value.shape)}; give a float or a "
                    "tensor of the variable's shape"
                ) from None
            return sharded_like(expanded, value) if is_sharded(value) else expanded
        # torch refuses a number beyond the range of the variable's dtype
        within = abs(constant) <= torch.finfo(value.dtype).max
        return float(constant) if within else math.copysign(math.inf, constant)

    def _tensor(self, name: str, value: Tensor) -> Tensor:
        """The tensor of this name with the dtype and device of ``value``."""
        key = (name, value.dtype, value.device)
        if key not in self._moved:
            constant: Tensor = getattr(self, name)
            self._moved[key] = constant.to(value.device, value.dtype)
        return self._moved[key]

    # The generated comparison of dataclasses fails on tensors, and pickles should not hold caches.

    def _arguments(self) -> tuple[Any, ...]:
        return tuple(getattr(self, each.name) for each in fields(self) if each.init)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Domain):
            return NotImplemented
        pairs = zip(self._arguments(), other._arguments(), strict=True)
        return all(
            torch.equal(mine, theirs)
            if isinstance(mine, Tensor) and isinstance(theirs, Tensor)
            else type(mine) is type(theirs) and mine == theirs
            for mine, theirs in pairs
        )

    def __hash__(self) -> int:
        parts = (each.shape if isinstance(each, Tensor) else each for each in self._arguments())
        return hash((type(self), *parts))

    def __reduce__(self) -> tuple[type[Domain], tuple[Any, ...]]:
        return type(self), self._arguments()


def number_or_tensor(label: str, value: object) -> float | Tensor:
    """A domain's constant as a float, or as a tensor that no caller can change.

    Raises
    ------
    DomainError
        If it is neither a real number nor a tensor of real numbers, or holds NaN.
    """
    if isinstance(value, Tensor) and not value.is_complex():
        if bool(value.isnan().any()):
            raise DomainError(f"{label} holds NaN at {_first_index(value.isnan())}")
        return value.detach().clone()
    if isinstance(value, Real):
        number = float(value)
        if math.isnan(number):
            raise DomainError(f"{label} is nan; expected a number")
        return number
    raise DomainError(
        f"{label} is {value!r}, expected a real number or a torch.Tensor: use torch.tensor(...)"
    )


def positive(label: str, value: object) -> float:
    """A positive finite number.

    Raises
    ------
    DomainError
        If it is anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise DomainError(f"{label} is {value!r}, expected a positive finite number")
    return float(value)


def entry(name: str, value: Tensor, index: int) -> str:
    """The expression of one entry: ``x[1, 2]`` for flat index 5 of a (2, 3) tensor x."""
    if value.ndim == 0:
        return name
    indices = torch.unravel_index(torch.tensor(index), value.shape)
    return f"{name}[{', '.join(str(int(each)) for each in indices)}]"


def _first_index(mask: Tensor) -> str:
    return str(mask.nonzero()[0].tolist()) if mask.ndim else "its only entry"
