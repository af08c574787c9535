"""The follower's problem at a fixed c: original and perturbed are one family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevel.problems.svm.program import Array, KKTPoint, SVMProgram


@dataclasses.dataclass(frozen=True, eq=False)
class Follower:
    r"""Minimise :math:`\phi(z) = \omega F(z) + \tfrac12 \|w\|^2` subject to :math:`A z \ge h`.

    F is the validation loss. The original response has :math:`\omega = 0` (a quadratic program),
    the perturbed one :math:`\omega = 1 / \gamma`; both have :math:`h = 1 - c`.
    """

    program: SVMProgram
    bound: Array
    leader_weight: float

    def gradient(self, z: Array) -> Array:
        gradient = self.program.lower_weights * z
        if self.leader_weight:
            rows = self.program.validation_rows
            gradient -= (self.leader_weight * np.exp(1 - rows @ z)) @ rows
        return gradient

    def hessian(self, z: Array) -> Array:
        hessian = np.diag(self.program.lower_weights)
        if self.leader_weight:
            rows = self.program.validation_rows
            losses = self.leader_weight * np.exp(1 - rows @ z)
            hessian += (rows.T * losses) @ rows
        return hessian

    def multiply(self, z: Array) -> Array:
        return self.program.train_rows @ z

    def adjoint(self, mu: Array) -> Array:
        return mu @ self.program.train_rows

    def newton(self, z: Array, weights: Array) -> Callable[[Array], Array]:
        rows = self.program.train_rows
        factor = cho_factor(self.hessian(z) + (rows.T * weights) @ rows, check_finite=False)
        return lambda r: cho_solve(factor, r, check_finite=False)

    def kkt_residual(self, point: KKTPoint) -> float:
        """The largest violation of stationarity, feasibility, sign and complementarity.

        Stationarity and complementarity count relative to the largest multiplier, if it exceeds 1.
        """
        z, mu = point
        slack = self.multiply(z) - self.bound
        stationarity = float(np.max(np.abs(self.gradient(z) - self.adjoint(mu))))
        complementarity = float(np.max(np.abs(slack * mu)))
        size = max(1.0, float(np.max(np.abs(mu))))
        return max(
            max(stationarity, complementarity) / size, -float(np.min(slack)), -float(np.min(mu))
        )
