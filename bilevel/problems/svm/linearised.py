"""The difference-of-convex step: the penalised problem with its concave part made linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevel.errors import OptionError, ResponseError
from bilevel.problems.svm.interior_point import interior_point
from bilevel.problems.svm.program import Array, SVMProgram


@dataclasses.dataclass(frozen=True, eq=False)
class LinearisedProgram:
    r"""The jointly convex program that majorises the penalised one at :math:`c_k`.

    .. math::
        \min_{c \ge c_{\min},\, z} \; \|c\| + F(z) + \gamma g(z) + \gamma \mu_g^\top c
        + \tfrac{\rho}{2} \|c - c_k\|^2
        \qquad \text{s.t.} \quad c + A z \ge 1.

    The value function v is convex with gradient :math:`-\mu_g` at :math:`c_k`, so
    :math:`-\gamma v(c) \le -\gamma v(c_k) + \gamma \mu_g^\top (c - c_k)`.

    As a :class:`~bilevel.problems.svm.interior_point.ConvexProgram` its variable is (c, z). The
    Hessian in c is diagonal but for one rank, so that c is eliminated in closed form and the
    linear systems have the size of z.
    """

    train_rows: Array
    validation_rows: Array
    lower_hessian: Array
    floor: float
    slope: Array
    center: Array
    proximity: float

    @cached_property
    def bound(self) -> Array:
        return np.concatenate([np.ones(self._n), np.full(self._n, self.floor)])

    @property
    def _n(self) -> int:
        return len(self.train_rows)

    def start(self) -> tuple[Array, Array]:
        """A strictly feasible (c, z), and multipliers that balance the gradient in c."""
        x = np.concatenate([np.full(self._n, 2.0), np.zeros(self.train_rows.shape[1])])
        slope = self.slope + 1 / np.sqrt(self._n)
        return x, 0.5 * np.concatenate([slope, slope])

    def split(self, x: Array) -> tuple[Array, Array]:
        return x[: self._n], x[self._n :]

    def gradient(self, x: Array) -> Array:
        c, z = self.split(x)
        rows = self.validation_rows
        of_c = c / np.linalg.norm(c) + self.slope + self.proximity * (c - self.center)
        of_z = self.lower_hessian * z - np.exp(1 - rows @ z) @ rows
        return np.concatenate([of_c, of_z])

    def multiply(self, x: Array) -> Array:
        c, z = self.split(x)
        return np.concatenate([c + self.train_rows @ z, c])

    def adjoint(self, mu: Array) -> Array:
        of_margin, of_floor = self.split(mu)
        return np.concatenate([of_margin + of_floor, of_margin @ self.train_rows])

    def newton(self, x: Array, weights: Array) -> Callable[[Array], Array]:
        c, z = self.split(x)
        rows, margin_weights = self.train_rows, weights[: self._n]
        norm = float(np.linalg.norm(c))
        stiffness = self.proximity + margin_weights + weights[self._n :]
        diagonal = 1 / norm + stiffness
        floor_stiffness = 1 / norm + self.proximity + weights[self._n :]
        # The Hessian in c is diag(diagonal) - u u' / norm with u = c / norm; Sherman-Morrison.
        scaled = c / (norm * diagonal)
        rank_one = 1 / (norm * np.sum((c / norm) ** 2 * stiffness / diagonal))

        def solve_c(r: Array) -> Array:
            solution: Array = r / diagonal + rank_one * (scaled @ r) * scaled
            return solution

        validation = self.validation_rows
        losses = np.exp(1 - validation @ z)
        schur = np.diag(self.lower_hessian)
        schur += (validation.T * losses) @ validation
        schur += (rows.T * (margin_weights * floor_stiffness / diagonal)) @ rows
        coupling = (margin_weights * scaled) @ rows
        schur -= rank_one * np.outer(coupling, coupling)
        factor = cho_factor(schur, check_finite=False)

        def solve(r: Array) -> Array:
            of_c, of_z = self.split(r)
            dz = cho_solve(
                factor, of_z - (margin_weights * solve_c(of_c)) @ rows, check_finite=False
            )
            return np.concatenate([solve_c(of_c - margin_weights * (rows @ dz)), dz])

        return solve


def linearised_step(
    program: SVMProgram,
    center: Array,
    gamma: float,
    mu: Array,
    *,
    proximity: float = 0.0,
    tolerance: float = 1e-9,
) -> tuple[Array, Array]:
    r"""Minimise the linearised program at :math:`c_k`.

    Without a proximal term every entry of c is as small as its constraints permit, for the
    objective increases in each: :math:`c = \max(1 - A z, c_{\min})`, and z stays feasible for
    the follower at the new c. A decreasing penalty leads the iteration to the relaxation's
    optimum, a fixed one to a stationary point of the penalised problem.

    Parameters
    ----------
    program : SVMProgram
    center : array of shape (n,)
        :math:`c_k`.
    gamma : float
        The penalty, at least 0.
    mu : array of shape (n,)
        Multipliers of the original response at :math:`c_k`.
    proximity : float
        :math:`\rho`, the weight of the proximal term.
    tolerance : float
        Bound on the optimality conditions' residual, relative to the largest gradient of the
        linear term.

    Returns
    -------
    c : array of shape (n,)
    z : array of shape (d + 1,)

    Raises
    ------
    OptionError
        ``gamma`` or ``proximity`` is negative, or ``mu`` has a negative entry.
    ResponseError
        The tolerance was not reached.
    """
    if not (gamma >= 0 and proximity >= 0):
        raise OptionError(f"gamma is {gamma} and proximity {proximity}; neither may be negative")
    if np.min(mu) < 0:
        raise OptionError(f"mu has the entry {np.min(mu)}; multipliers must not be negative")
    linearised = LinearisedProgram(
        program.train_rows,
        program.validation_rows,
        gamma * program.lower_weights,
        program.floor,
        gamma * mu,
        center,
        proximity,
    )
    scaled = tolerance * max(1.0, gamma * float(np.max(mu)))
    end = interior_point(linearised, *linearised.start(), tolerance=scaled)
    if not end.converged:
        raise ResponseError(
            f"the linearised problem was solved to {end.residual:.3g} only (tolerance "
            f"{scaled:.3g}) in {end.iterations} iterations; loosen the tolerance or add proximity"
        )
    c, z = linearised.split(end.x)
    smallest = np.maximum(1 - program.train_rows @ z, program.floor)
    return (np.maximum(c, smallest) if proximity else smallest), z
