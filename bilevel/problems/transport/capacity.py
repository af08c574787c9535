"""The two roles of capacity in a program over routes: given, or chosen with the routes."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bilevel.problems.transport.routes import Array


class Capacity:
    r"""Capacities a that do not move.

    What a program knows of them: a part of its objective in a alone, bounds :math:`v(a) \ge 0`, and
    beside the loads' rows :math:`\ell \le a` others, :math:`0 \le R a + r`; here there are none.

    Parameters
    ----------
    capacity : array of shape (E,)
    """

    def __init__(self, capacity: Array) -> None:
        self.capacity = capacity

    @property
    def rows(self) -> Array:
        """R, of shape (m, E)."""
        return np.zeros((0, len(self.capacity)))

    @property
    def offset(self) -> Array:
        """r, of shape (m,)."""
        return np.zeros(0)

    def scaled(self, unit: float) -> Capacity:
        """The same with capacities, and the objective, in multiples of ``unit``."""
        return Capacity(self.capacity / unit)

    def start(self, target: Array, distance: float) -> Array:
        """Capacities near to a target, and where there is room at a distance from the bounds."""
        return self.capacity

    def values(self, a: Array) -> Array:
        """v(a)."""
        return np.zeros(0)

    def change(self, da: Array) -> Array:
        """The derivative of v, times a vector."""
        return np.zeros(0)

    def adjoint(self, multipliers: Array) -> Array:
        """The transpose of v's derivative, times multipliers."""
        return np.zeros_like(self.capacity)

    def slope(self, a: Array, pull: Array) -> Array:
        """Gradient of the objective, less a pull; zero where a does not move."""
        return np.zeros_like(self.capacity)

    def mobility(self, weights: Array) -> Array:
        """Inverse of the objective's Hessian with the weighted bounds', which is diagonal."""
        return np.zeros_like(self.capacity)


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenCapacity(Capacity):
    r"""Capacities that cost :math:`p^\top a + \tfrac{\rho}{2} \|a - a_0\|^2`, within bounds.

    Attributes
    ----------
    price, center : arrays of shape (E,)
        p and :math:`a_0`.
    proximal : float
        :math:`\rho \ge 0`.
    lower, upper : arrays of shape (E,)
        Bounds; those above may be infinite.
    unit_cost : array of shape (E,)
        What a unit of capacity takes from the budget.
    budget : float
        Infinite where there is none.
    """

    price: Array
    center: Array
    proximal: float
    lower: Array
    upper: Array
    unit_cost: Array
    budget: float

    @cached_property
    def _bounded(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(np.isfinite(self.upper))

    @property
    def rows(self) -> Array:
        return (
            -self.unit_cost[None, :] if np.isfinite(self.budget) else np.zeros((0, len(self.price)))
        )

    @property
    def offset(self) -> Array:
        return np.full(len(self.rows), self.budget)

    def scaled(self, unit: float) -> Capacity:
        return dataclasses.replace(
            self,
            center=self.center / unit,
            proximal=self.proximal * unit,
            lower=self.lower / unit,
            upper=self.upper / unit,
            budget=self.budget / unit,
        )

    def start(self, target: Array, distance: float) -> Array:
        inset = np.minimum(distance, 0.4 * (self.upper - self.lower))
        return np.clip(target, self.lower + inset, self.upper - inset)

    def values(self, a: Array) -> Array:
        return np.concatenate([a - self.lower, (self.upper - a)[self._bounded]])

    def change(self, da: Array) -> Array:
        return np.concatenate([da, -da[self._bounded]])

    def adjoint(self, multipliers: Array) -> Array:
        below, above = np.split(multipliers, [len(self.price)])
        below = below.copy()
        below[self._bounded] -= above
        return below

    def slope(self, a: Array, pull: Array) -> Array:
        return self.price + self.proximal * (a - self.center) - pull

    def mobility(self, weights: Array) -> Array:
        below, above = np.split(weights, [len(self.price)])
        curvature = self.proximal + below
        curvature[self._bounded] += above
        return 1 / curvature
