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
class JointProgram:
    r"""The leader's and the follower's variables together, in one convex program.

    .. math::
        \min_{c \ge c_{\min},\, z} \; \|c\| + F(z) + \tfrac12 z^\top \mathrm{diag}(q)\, z
        + s^\top c + \tfrac{\rho}{2} \|c - c_k\|^2
        \qquad \text{s.t.} \quad c + A z \ge 1.

    As a :class:`~bilevel.problems.svm.interior_point.ConvexProgram` its variable is (c, z). The
    Hessian in c is diagonal but for one rank, so that c is eliminated in closed form and the
    linear systems have the size of z.

    Attributes
    ----------
    train_rows, validation_rows : array
        A, and the rows of the losses in F.
    curvature : array
        q, non-negative.
    slope : array
        s, non-negative.
    center : array
        :math:`c_k`.
    proximal : float
        :math:`\rho`.
    floor : float
        :math:`c_{\min}`.
    """

    train_rows: Array
    validation_rows: Array
    curvature: Array
    slope: Array
    center: Array
    proximal: float
    floor: float

    @cached_property
    def bound(self) -> Array:
        n = len(self.center)
        return np.concatenate([np.ones(n), np.full(n, self.floor)])

    def start(self) -> tuple[Array, Array]:
        """A strictly feasible (c, z), and multipliers that balance the gradient in c."""
        n = len(self.center)
        x = np.concatenate([np.full(n, max(2.0, 2.0 * self.floor)), np.zeros(len(self.curvature))])
        halves = 0.5 * (self.slope + 1 / np.sqrt(n))
        return x, np.concatenate([halves, halves])

    def split(self, x: Array) -> tuple[Array, Array]:
        return x[: len(self.center)], x[len(self.center) :]

    def gradient(self, x: Array) -> Array:
        c, z = self.split(x)
        of_c = c / np.linalg.norm(c) + self.slope + self.proximal * (c - self.center)
        losses = np.exp(1 - self.validation_rows @ z)
        return np.concatenate([of_c, self.curvature * z - losses @ self.validation_rows])

    def multiply(self, x: Array) -> Array:
        c, z = self.split(x)
        return np.concatenate([c + self.train_rows @ z, c])

    def adjoint(self, mu: Array) -> Array:
        of_margins, of_floor = self.split(mu)
        return np.concatenate([of_margins + of_floor, of_margins @ self.train_rows])

    def newton(self, x: Array, weights: Array) -> Callable[[Array], Array]:
        c, z = self.split(x)
        rows = self.train_rows
        margin, floor = self.split(weights)

        # In c: diag(diagonal) - u u' / |c| with u = c / |c|, inverted by Sherman and Morrison.
        norm = float(np.linalg.norm(c))
        unit = c / norm
        barrier = self.proximal + margin + floor
        diagonal = 1 / norm + barrier
        scaled = unit / diagonal
        rank_one = 1 / (norm * float(np.sum(unit**2 * barrier / diagonal)))

        def solve_c(r: Array) -> Array:
            solution: Array = r / diagonal + rank_one * (scaled @ r) * scaled
            return solution

        losses = np.exp(1 - self.validation_rows @ z)
        remaining = margin * (1 / norm + self.proximal + floor) / diagonal
        coupling = (margin * scaled) @ rows
        schur = np.diag(self.curvature)
        schur += (self.validation_rows.T * losses) @ self.validation_rows
        schur += (rows.T * remaining) @ rows
        schur -= rank_one * np.outer(coupling, coupling)
        factor = cho_factor(schur, check_finite=False)

        def solve(r: Array) -> Array:
            of_c, of_z = self.split(r)
            reduced = of_z - (margin * solve_c(of_c)) @ rows
            dz = cho_solve(factor, reduced, check_finite=False)
            return np.concatenate([solve_c(of_c - margin * (rows @ dz)), dz])

        return solve


def linearised_step(
    program: SVMProgram,
    center: Array,
    penalty: float,
    mu: Array,
    *,
    proximal: float = 0.0,
    tolerance: float = 1e-8,
) -> tuple[Array, Array]:
    r"""Minimise the penalised objective with the value function linearised at :math:`c_k`.

    The value function v is convex with gradient :math:`-\mu_g` at :math:`c_k`, so that
    :math:`-\gamma v(c) \le -\gamma v(c_k) + \gamma \mu_g^\top (c - c_k)`. With this bound in its
    place, what remains is jointly convex:

    .. math::
        \min_{c \ge c_{\min},\, z} \; \|c\| + F(z) + \gamma g(z) + \gamma \mu_g^\top c
        + \tfrac{\rho}{2} \|c - c_k\|^2
        \qquad \text{s.t.} \quad c + A z \ge 1,

    solved by an interior-point method. Without the proximal term every entry of c is as small as
    the constraints permit, :math:`c = \max(1 - A z, c_{\min})`, for the objective increases in
    each. The new c is then usually on the boundary of the feasible set: take the next original
    response at ``SVMResponse.project(c, margin=1e-7)``.

    Parameters
    ----------
    program : SVMProgram
    center : array of shape (n,)
        :math:`c_k`.
    penalty : float
        :math:`\gamma \ge 0`.
    mu : array of shape (n,)
        :math:`\mu_g`, the multipliers of the original response at :math:`c_k`.
    proximal : float
        :math:`\rho \ge 0`.
    tolerance : float
        Bound on the optimality conditions' residual, relative to the largest multiplier if that
        exceeds 1.

    Returns
    -------
    c : array of shape (n,)
    z : array of shape (d + 1,)
        Feasible for the follower at c.

    Raises
    ------
    OptionError
        ``penalty`` or ``proximal`` is negative, or ``mu`` has a negative entry.
    ResponseError
        The tolerance was not reached.
    """
    if not (0 <= penalty < np.inf and 0 <= proximal < np.inf):
        raise OptionError(
            f"penalty={penalty!r}, proximal={proximal!r}; both must be finite and not negative"
        )
    if not np.min(mu) >= 0:
        raise OptionError(
            f"mu has the entry {np.min(mu)}; pass the multipliers of the original response, which "
            "are not negative"
        )
    joint = JointProgram(
        train_rows=program.train_rows,
        validation_rows=program.validation_rows,
        curvature=penalty * program.lower_weights,
        slope=penalty * mu,
        center=center,
        proximal=proximal,
        floor=program.floor,
    )
    end = interior_point(joint, *joint.start(), tolerance=tolerance)
    if not end.converged:
        raise ResponseError(
            f"the linearised problem was solved to {end.residual:.3g} only (tolerance "
            f"{tolerance:.3g}, {end.iterations} iterations); standardise the features, or add a "
            "proximal term"
        )
    c, z = joint.split(end.x)
    smallest = np.maximum(1 - program.train_rows @ z, program.floor)
    return (np.maximum(c, smallest) if proximal else smallest), z
