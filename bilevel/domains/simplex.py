"""The simplex and the sorted projection onto it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.domains.base import Domain, entry, positive
from bilevel.domains.sharding import on_whole_tensor
from bilevel.errors import DomainError


@dataclass(frozen=True, eq=False)
class Simplex(Domain):
    r"""The simplex :math:`\{v : v \ge 0,\ \sum_i v_i = s\}` over all entries of the variable.

    .. math:: \Pi(v) = \max(v - \theta, 0), \qquad
        \theta \text{ such that } \textstyle\sum_i \max(v_i - \theta, 0) = s

    with :math:`\theta` found exactly from the sorted entries, in :math:`O(n \log n)`.

    Parameters
    ----------
    total : float
        :math:`s > 0`.

    Raises
    ------
    DomainError
        If the total is not positive and finite.

    References
    ----------
    Held, Wolfe, Crowder 1974, "Validation of subgradient optimization"; Condat 2016, "Fast
    projection onto the simplex and the l1 ball", algorithm 1.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", positive("Simplex.total", self.total))

    @on_whole_tensor
    @torch.no_grad()
    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the simplex; see :class:`Simplex`."""
        _require_entries(value)
        return project_onto_simplex(value.reshape(-1), self.total).reshape(value.shape)

    def bounds(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Zero below, nothing above: the equality implies the rest."""
        return torch.zeros_like(value), torch.full_like(value, math.inf)

    def constraints(self, value: Tensor) -> tuple[None, Tensor]:
        r""":math:`\sum_i v_i - s = 0`."""
        return None, (value.sum() - self.total).reshape(1)

    def _violation(self, value: Tensor, name: str, tolerance: float) -> str | None:
        _require_entries(value)
        least = int(value.argmin())
        smallest, total = float(value.reshape(-1)[least]), float(value.sum())
        if smallest < -tolerance * self.total:
            return f"{entry(name, value, least)} = {smallest:.9g} is below the lower bound 0"
        if abs(total - self.total) > tolerance * self.total:
            return f"its entries sum to {total:.9g}, expected {self.total:.9g}"
        return None


def project_onto_simplex(vector: Tensor, total: float) -> Tensor:
    """Project a 1-d tensor onto the simplex of the given total, without waiting for the device."""
    wide = vector.to(torch.promote_types(vector.dtype, torch.float32))
    descending = wide.sort(descending=True).values
    # Measured from the largest entry, what decides is of the size of the total: nothing cancels.
    largest = descending[0]
    heights = descending - largest
    counts = torch.arange(1, len(heights) + 1, dtype=wide.dtype, device=wide.device)
    support = heights * counts > heights.cumsum(0) - total
    threshold = _threshold(heights, support, total)
    shifted = wide - largest - threshold
    for _ in range(2):  # Newton steps remove the rounding that many small entries would share
        shifted = shifted - _threshold(shifted, shifted > 0, total)
    return shifted.clamp(min=0.0).to(vector.dtype)


def _threshold(entries: Tensor, support: Tensor, total: float) -> Tensor:
    """The shift that makes the entries in the support sum to the total."""
    return (torch.where(support, entries, 0.0).sum() - total) / support.sum()


def _require_entries(value: Tensor) -> None:
    if value.numel() == 0:
        raise DomainError(
            f"a tensor of shape {tuple(value.shape)} has no entries to sum to the simplex's "
            "total; leave its domain out"
        )
