"""Random strongly convex quadratic bilevel problems whose optimum is known by construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bilevel import BilevelProblem

Array = np.ndarray


@dataclass(frozen=True)
class Quadratic:
    r"""f = ½‖x - a‖² + ½‖y - b‖², g = ½ yᵀQy + yᵀ(Rx + q), c = A y + B x - e <= 0.

    ``a`` is chosen so that x* is stationary for φ(x) = f(x, y_g(x)): with the active constraints
    and strictly positive multipliers at x* the response is affine nearby, and φ strongly convex.
    """

    Q: Array
    R: Array
    q: Array
    A: Array
    B: Array
    e: Array
    a: Array
    b: Array
    x_star: Array
    y_star: Array
    mu_star: Array

    @property
    def problem(self) -> BilevelProblem:
        Q, R, q, A, B, e, a, b = (
            torch.from_numpy(part)
            for part in (self.Q, self.R, self.q, self.A, self.B, self.e, self.a, self.b)
        )
        constraints = (lambda x, y: A @ y + B @ x - e) if len(self.e) else None
        return BilevelProblem(
            upper=lambda x, y: 0.5 * ((x - a) ** 2).sum() + 0.5 * ((y - b) ** 2).sum(),
            lower=lambda x, y: 0.5 * y @ (Q @ y) + y @ (R @ x + q),
            lower_constraints=constraints,
        )

    def response_jacobian(self) -> Array:
        """dy_g/dx at x*, from the KKT system of the active constraints."""
        active = self.mu_star > 0
        A, B = self.A[active], self.B[active]
        zeros = np.zeros((len(A), len(A)))
        system = np.block([[self.Q, A.T], [A, zeros]])
        return -np.linalg.solve(system, np.concatenate([self.R, B]))[: len(self.q)]

    def hypergradient(self, x: Array, y: Array) -> Array:
        """∇φ where the active set is that of x*."""
        return (x - self.a) + self.response_jacobian().T @ (y - self.b)


def random_quadratic(seed: int, n: int, d: int, m: int) -> Quadratic:
    """n upper and d lower entries, m coupled constraints of which about a third are active."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((d, d)) / np.sqrt(d)
    Q = factor @ factor.T + 0.5 * np.eye(d)
    R = rng.standard_normal((d, n)) / np.sqrt(n)
    A = rng.standard_normal((m, d)) / np.sqrt(d)
    B = rng.standard_normal((m, n)) / np.sqrt(n)
    x_star, y_star, b = rng.standard_normal(n), rng.standard_normal(d), rng.standard_normal(d)
    active = np.arange(m) < min(m // 3 + (m > 0), d)
    mu_star = np.where(active, 0.5 + rng.random(m), 0.0)
    slack = np.where(active, 0.0, 0.5 + rng.random(m))
    e = A @ y_star + B @ x_star + slack
    q = -(Q @ y_star + R @ x_star + A.T @ mu_star)
    partial = Quadratic(Q, R, q, A, B, e, np.zeros(n), b, x_star, y_star, mu_star)
    a = x_star + partial.response_jacobian().T @ (y_star - b)
    return Quadratic(Q, R, q, A, B, e, a, b, x_star, y_star, mu_star)
