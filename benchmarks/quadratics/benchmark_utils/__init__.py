"""Quadratic bilevel problems with an optimum known by construction."""

from __future__ import annotations

from dataclasses import dataclass

import clarabel
import numpy as np
import torch
from scipy import sparse

from bilevel import BilevelProblem

#: Of the start from the optimum, relative to the optimum's norm.
DISTANCE = 0.3


@dataclass(frozen=True)
class Quadratic:
    """f = ½‖x - a‖² + ½‖y - b‖²;  g = ½ yᵀQy + yᵀ(Rx + q)  subject to  Ay + Bx <= e."""

    Q: np.ndarray
    R: np.ndarray
    q: np.ndarray
    A: np.ndarray
    B: np.ndarray
    e: np.ndarray
    a: np.ndarray
    b: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int]:
        """n, d, m."""
        return len(self.a), len(self.b), len(self.e)

    @property
    def problem(self) -> BilevelProblem:
        Q, R, q, A, B, e, a, b = (torch.from_numpy(each) for each in vars(self).values())
        return BilevelProblem(
            upper=lambda x, y: 0.5 * (x - a).square().sum() + 0.5 * (y - b).square().sum(),
            lower=lambda x, y: 0.5 * torch.dot(y, Q @ y) + torch.dot(y, R @ x + q),
            lower_constraints=(lambda x, y: A @ y + B @ x - e) if len(e) else None,
        )

    def response(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower level's solution and multipliers at x, by Clarabel where constrained."""
        slope = self.R @ x + self.q
        if not len(self.e):
            return -np.linalg.solve(self.Q, slope), np.zeros(0)
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
        solution = clarabel.DefaultSolver(
            sparse.csc_matrix(np.triu(self.Q)),
            slope,
            sparse.csc_matrix(self.A),
            self.e - self.B @ x,
            [clarabel.NonnegativeConeT(len(self.e))],
            settings,
        ).solve()
        return np.array(solution.x), np.array(solution.z)

    def response_jacobian(self, active: np.ndarray) -> np.ndarray:
        """dy/dx where these constraints are active, from the KKT system."""
        A, B = self.A[active], self.B[active]
        system = np.block([[self.Q, A.T], [A, np.zeros((len(A), len(A)))]])
        return -np.linalg.solve(system, np.concatenate([self.R, B]))[: len(self.q)]

    def upper(self, x: np.ndarray, y: np.ndarray) -> float:
        """f(x, y)."""
        return 0.5 * float(np.sum((x - self.a) ** 2) + np.sum((y - self.b) ** 2))


@dataclass(frozen=True)
class Known:
    """A quadratic problem, a start, its optimum, and the constants that step sizes are chosen by.

    ``lower_smoothness`` is the largest eigenvalue of Q, ``lower_convexity`` the smallest;
    ``upper_smoothness`` bounds the curvature of φ(x) = f(x, y(x)).
    """

    quadratic: Quadratic
    x0: np.ndarray
    x_star: np.ndarray
    y_star: np.ndarray
    lower_smoothness: float
    lower_convexity: float
    upper_smoothness: float

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x0, and zero for y."""
        return torch.from_numpy(self.x0.copy()), torch.zeros_like(torch.from_numpy(self.y_star))


def random_quadratic(
    seed: int, n: int, d: int, m: int, condition: float, conflict: float, margin: float
) -> Known:
    """n upper and d lower entries, m constraints of which a third are active at the optimum.

    x*, y* and the multipliers are drawn first, with strict complementarity; q and e then make them
    the lower level's KKT point, and a makes ∇φ(x*) vanish by implicit differentiation. φ is
    strongly convex around x*: x* is a strict local optimum, without constraints the global one.

    ``condition`` is that of Q, ``conflict`` the distance of y* from b, the y that f alone would
    like. Multipliers and slacks are between ``margin`` and twice that: the smaller, the nearer the
    kinks of φ where the active set changes, and with them other local optima.
    """
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    Q = basis @ np.diag(np.geomspace(1.0 / condition, 1.0, d)) @ basis.T
    Q = 0.5 * (Q + Q.T)
    R = rng.standard_normal((d, n)) / np.sqrt(n * condition)
    A = rng.standard_normal((m, d)) / np.sqrt(d)
    B = rng.standard_normal((m, n)) / np.sqrt(n)
    x_star, y_star = rng.standard_normal(n), rng.standard_normal(d)
    b = y_star + conflict * rng.standard_normal(d)
    active = np.arange(m) < min(-(-m // 3), d)
    multipliers = np.where(active, margin * (1.0 + rng.random(m)), 0.0)
    slack = np.where(active, 0.0, margin * (1.0 + rng.random(m)))
    e = A @ y_star + B @ x_star + slack
    q = -(Q @ y_star + R @ x_star + A.T @ multipliers)
    jacobian = Quadratic(Q, R, q, A, B, e, x_star, b).response_jacobian(active)
    a = x_star + jacobian.T @ (y_star - b)
    free = np.linalg.norm(np.linalg.solve(Q, R), 2)
    steepest = max(free, np.linalg.norm(jacobian, 2))
    return Known(
        quadratic=Quadratic(Q, R, q, A, B, e, a, b),
        x0=x_star + DISTANCE * rng.standard_normal(n),
        x_star=x_star,
        y_star=y_star,
        lower_smoothness=1.0,
        lower_convexity=1.0 / condition,
        upper_smoothness=1.0 + steepest**2,
    )
