"""What is to be solved and what comes back: programs, linearisations, answers and certificates."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from bilevel.newton.arrays import Array


@dataclasses.dataclass(frozen=True)
class Linearisation:
    r"""Values and first derivatives of a program at one point.

    Attributes
    ----------
    objective : float
        :math:`\varphi(z)`.
    gradient : (n,) array
        :math:`\nabla\varphi(z)`.
    inequalities : (m,) array
        :math:`c(z)`, feasible where :math:`\le 0`.
    inequality_jacobian : (m, n) array
        :math:`c'(z)`.
    equalities : (p,) array
        :math:`h(z)`, feasible where :math:`= 0`.
    equality_jacobian : (p, n) array
        :math:`h'(z)`.
    """

    objective: float
    gradient: Array
    inequalities: Array
    inequality_jacobian: Array
    equalities: Array
    equality_jacobian: Array


class Program(Protocol):
    r"""A smooth program :math:`\min \varphi(z)` s.t. :math:`c(z)\le0,\ h(z)=0,\ l\le z\le u`.

    Arrays are NumPy float64. ``lower`` and ``upper`` have shape ``(n,)`` and may hold infinities.
    """

    @property
    def lower(self) -> Array:
        """The bounds from below, ``-inf`` where there is none."""

    @property
    def upper(self) -> Array:
        """The bounds from above, ``inf`` where there is none."""

    def evaluate(self, z: Array) -> Linearisation:
        """Values and first derivatives at ``z``."""

    def value(self, z: Array) -> tuple[float, Array, Array]:
        """Objective, inequalities and equalities at ``z``, without derivatives."""

    def hessian(self, z: Array, mu: Array, nu: Array) -> Array:
        r"""Hessian :math:`\nabla^2_{zz}(\varphi + \mu^\top c + \nu^\top h)`, shape ``(n, n)``."""


@dataclasses.dataclass(frozen=True)
class Answer:
    r"""A Karush-Kuhn-Tucker point and the residuals that vouch for it.

    The multipliers satisfy, up to ``stationarity``,

    .. math:: \nabla\varphi(z) + c'(z)^\top\mu + h'(z)^\top\nu = \beta.

    Attributes
    ----------
    z : (n,) array
        The solution.
    mu : (m,) array
        Multipliers of the inequalities, non-negative.
    nu : (p,) array
        Multipliers of the equalities.
    bound_mu : (n,) array
        :math:`\beta`, the multipliers of the lower minus those of the upper bounds, which is the
        reduced gradient: non-negative at a lower bound, non-positive at an upper one, else zero.
    objective : float
        :math:`\varphi(z)`, without the penalty term if the constraints are elastic.
    stationarity : float
        Maximum norm of the equation above, in units of the gradient.
    violation : float
        :math:`\max(0, c, |h|)`; the bounds hold exactly.
    complementarity : float
        :math:`\max_i \mu_i |c_i|`; if the constraints are elastic with penalty :math:`\rho`,
        :math:`\max_i\,\mu_i[-c_i]_+ + (\rho - \mu_i)[c_i]_+` and likewise for h.
    iterations : int
        Newton steps taken; a start accepted as it is has none.
    interior_point_solves : int
        Quadratic programs that needed the interior-point method; the others were finished by
        exchanging active constraints from the warm start.
    elastic_slack : float
        :math:`\sum [c_i]_+ + \sum |h_j|` if the constraints are elastic, else zero.
    regular : bool
        Whether the residuals meet the tolerance. ``False`` only where the feasible set admits no
        multipliers (such as :math:`y^2 \le 0`): z is then feasible to about 1e-6.
    """

    z: Array
    mu: Array
    nu: Array
    bound_mu: Array
    objective: float
    stationarity: float
    violation: float
    complementarity: float
    iterations: int
    interior_point_solves: int
    elastic_slack: float
    regular: bool


@dataclasses.dataclass(frozen=True)
class FarkasCertificate:
    r"""Multipliers that prove the linearised constraints inconsistent at ``z``.

    With :math:`\mu\ge0` and :math:`c'(z)^\top\mu + h'(z)^\top\nu = \beta`, where :math:`\beta` is
    non-negative at lower bounds, non-positive at upper ones and zero elsewhere, every step d within
    the bounds has

    .. math:: \mu^\top(c + c'd) + \nu^\top(h + h'd) \ge \mu^\top c + \nu^\top h = \text{gap} > 0,

    whereas a feasible step would make the left-hand side non-positive. For affine constraints this
    is Farkas' lemma, hence a proof that the program is infeasible; for nonlinear ones z is a
    stationary point of the total violation. The multipliers are scaled to a maximum of 1.

    Attributes
    ----------
    z : (n,) array
        Where the constraints are linearised; it minimises the total violation.
    mu, nu, bound_mu : array
        As in :class:`Answer`.
    gap : float
        The positive lower bound above.
    """

    z: Array
    mu: Array
    nu: Array
    bound_mu: Array
    gap: float
