"""Mehrotra's predictor-corrector method for convex programs with linear inequalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from bilevel.problems.svm.program import Array

# Multipliers beyond this are those of an infeasible program.
_DIVERGED = 1e10


class ConvexProgram(Protocol):
    r"""Minimise a smooth convex :math:`\phi(x)` subject to :math:`G x \ge h`."""

    @property
    def bound(self) -> Array:
        """h."""

    def gradient(self, x: Array) -> Array:
        r"""The gradient of :math:`\phi`."""

    def multiply(self, x: Array) -> Array:
        """G x."""

    def adjoint(self, mu: Array) -> Array:
        """The transpose of G, times mu."""

    def newton(self, x: Array, weights: Array) -> Callable[[Array], Array]:
        r"""A solver of :math:`(\nabla^2 \phi(x) + G^\top \mathrm{diag}(weights) G)\, d = r`."""


class InteriorPoint(NamedTuple):
    """The last iterate and how it was reached."""

    x: Array
    mu: Array
    converged: bool
    iterations: int
    residual: float


# Far from the solution the exponentials may overflow; such points are rejected as not finite.
@np.errstate(over="ignore", invalid="ignore")
def interior_point(
    program: ConvexProgram,
    x: Array,
    mu: Array | None = None,
    *,
    tolerance: float,
    max_iterations: int = 100,
) -> InteriorPoint:
    r"""Solve a convex program from any x by a primal-dual interior-point method.

    With slacks :math:`s = G x - h`, each iteration makes a predictor step towards
    :math:`s_i \mu_i = 0`, reads off how far it gets, and corrects to
    :math:`s_i \mu_i = \sigma \tau` to second order; both steps share one factorisation of the
    normal equations. The objective need not be quadratic: a step is halved until the dual
    residual does not grow, or is no larger against :math:`\tau` than ten times what it was at
    the start.

    Parameters
    ----------
    program : ConvexProgram
    x : array
        The start; it need not be feasible.
    mu : array, optional
        Positive multipliers to start from; by default, equal ones at the scale of the gradient.
    tolerance : float
        Stops when the primal residual, and the dual residual and every product
        :math:`s_i \mu_i` relative to :math:`\max(1, \|\mu\|_\infty)`, are below it.
    max_iterations : int

    Returns
    -------
    InteriorPoint
        With ``converged=False`` when the iterates diverged (which they do when no x is
        feasible), the step vanished, or the iterations were spent.

    Notes
    -----
    Source: Mehrotra 1992, SIAM J. Optimization 2(4); Nocedal and Wright 2006, algorithm 16.4.
    """
    slack = np.maximum(program.multiply(x) - program.bound, 1.0)
    if mu is None:
        # Too small a start, against the gradient that they must balance, makes the method cycle.
        mu = np.full_like(slack, max(1.0, 0.3 * _norm(program.gradient(x))))
    ratio = _dual_residual(program, x, mu) / float(np.mean(slack * mu))
    residual = np.inf
    for iteration in range(max_iterations):
        dual = program.gradient(x) - program.adjoint(mu)
        primal = program.multiply(x) - program.bound - slack
        products = slack * mu
        barrier = float(np.mean(products))
        size = max(1.0, _norm(mu))
        residual = max(_norm(dual) / size, _norm(primal), _norm(products) / size)
        if residual <= tolerance:
            return InteriorPoint(x, mu, True, iteration, residual)
        if not (size < _DIVERGED and np.isfinite(residual)):
            return InteriorPoint(x, mu, False, iteration, residual)

        try:
            solve = program.newton(x, mu / slack)
        except np.linalg.LinAlgError:
            return InteriorPoint(x, mu, False, iteration, residual)
        system = _NewtonSystem(program, solve, dual, primal, slack, mu)
        _, ds, dmu = system.direction(products)
        step = min(1.0, _step_to_boundary(slack, ds), _step_to_boundary(mu, dmu))
        predicted = float(np.mean((slack + step * ds) * (mu + step * dmu)))
        centred = max((predicted / barrier) ** 3 * barrier, 0.1 * tolerance * size)
        dx, ds, dmu = system.direction(products + ds * dmu - centred)

        longest = min(_step_to_boundary(slack, ds), _step_to_boundary(mu, dmu))
        step = min(1.0, 0.995 * longest)
        allowed = max(_norm(dual), 10.0 * ratio * barrier, tolerance * size)
        while not _dual_residual(program, x + step * dx, mu + step * dmu) <= allowed:
            step *= 0.5
            if step < 1e-10:
                return InteriorPoint(x, mu, False, iteration, residual)
        x, slack, mu = x + step * dx, slack + step * ds, mu + step * dmu
    return InteriorPoint(x, mu, False, max_iterations, residual)


class _NewtonSystem(NamedTuple):
    """The linearised optimality conditions at one iterate, already factorised."""

    program: ConvexProgram
    solve: Callable[[Array], Array]
    dual: Array
    primal: Array
    slack: Array
    mu: Array

    def direction(self, target: Array) -> tuple[Array, Array, Array]:
        """The step (dx, ds, dmu) that removes both residuals and ``target`` from s * mu."""
        reduced = target / self.slack + self.mu / self.slack * self.primal
        dx = self.solve(-self.dual - self.program.adjoint(reduced))
        ds = self.program.multiply(dx) + self.primal
        return dx, ds, -(target + self.mu * ds) / self.slack


def _dual_residual(program: ConvexProgram, x: Array, mu: Array) -> float:
    return _norm(program.gradient(x) - program.adjoint(mu))


def _norm(v: Array) -> float:
    return float(np.max(np.abs(v)))


def _step_to_boundary(v: Array, dv: Array) -> float:
    """The largest step that keeps v + step * dv non-negative."""
    falling = dv < 0
    return float(np.min(v[falling] / -dv[falling], initial=np.inf))
