"""A program with its constraints in one array of rows, and the residuals of its optimality."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from bilevel.errors import NonFiniteError, ProblemError
from bilevel.newton.arrays import Array, largest
from bilevel.newton.complementarity import QuadraticProgram
from bilevel.newton.program import Linearisation, Program

# A variable this close to a bound (relative to the bound) is at the bound.
_AT_BOUND = 1e-12
# Gradients below this share of the first one (or of 1, if that is less) count as zero.
_GRADIENT_FLOOR = 1e-6


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Optimality residuals as in :class:`~bilevel.newton.Answer`, by row where rows have them."""

    bound_mu: Array
    stationarity: float
    violations: Array
    distances: Array
    products: Array

    @property
    def complementarity(self) -> float:
        """The largest product of a row and its multiplier's distance from where that row is due."""
        return largest(self.products)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Magnitudes of the terms that cancel at a solution; residuals are small relative to them."""

    gradient: float
    reach: float
    rows: Array

    def bent(self, curvature: float) -> Scales:
        """These scales where Hessian times variables has a magnitude too."""
        return self if curvature <= self.gradient else Scales(curvature, self.reach, self.rows)


@dataclasses.dataclass(frozen=True)
class Point:
    """An iterate: variables and multipliers with the values and derivatives there."""

    z: Array
    multipliers: Array
    objective: float
    gradient: Array
    rows: Array
    jacobian: Array
    residuals: Residuals
    scales: Scales


class RowProgram:
    r"""A :class:`Program` whose rows :math:`r(z) = (c(z), h(z))` have multipliers in intervals.

    The interval of a row is :math:`[0, \rho]` for an inequality and :math:`[-\rho, \rho]` for an
    equality. With :math:`\rho = \infty` the rows are constraints, else they are *elastic*: each
    costs :math:`\rho` times its violation, an exact penalty.

    Parameters
    ----------
    program : Program
        The program.
    inequalities, equalities : int
        Numbers m and p of its constraints; the inequalities are the first rows.
    penalty : float
        :math:`\rho`.
    least_gradient : float
        A gradient's magnitude for the scales, where the objective has none.
    """

    def __init__(
        self,
        program: Program,
        inequalities: int,
        equalities: int,
        penalty: float = math.inf,
        least_gradient: float = 0.0,
    ) -> None:
        self.program = program
        self.inequalities = inequalities
        self.penalty = penalty
        self.lower, self.upper = program.lower, program.upper
        self.dual_lower = np.zeros(inequalities + equalities)
        self.dual_lower[inequalities:] = -penalty
        self.dual_upper = np.full(inequalities + equalities, penalty)
        self._bounded = bool((self.lower > -np.inf).any() or (self.upper < np.inf).any())
        if self._bounded:
            with np.errstate(invalid="ignore"):  # inf - inf where there is no bound
                self._near_lower = self.lower + _AT_BOUND * np.maximum(1.0, np.abs(self.lower))
                self._near_upper = self.upper - _AT_BOUND * np.maximum(1.0, np.abs(self.upper))
        self._first_gradient = 0.0
        self._least_gradient = max(least_gradient, 1e-300)

    @property
    def elastic(self) -> bool:
        """Whether violated rows are penalised rather than forbidden."""
        return math.isfinite(self.penalty)

    def with_penalty(self, penalty: float) -> RowProgram:
        """The same program with another penalty on its rows."""
        count = self.dual_upper.size - self.inequalities
        return RowProgram(self.program, self.inequalities, count, penalty)

    def point(
        self, z: Array, multipliers: Array, linearisation: Linearisation | None = None
    ) -> Point:
        """Evaluate the program at ``z``.

        Raises
        ------
        NonFiniteError
            If a value or derivative is NaN or infinite.
        """
        e = self.program.evaluate(z) if linearisation is None else linearisation
        rows = np.concatenate((e.inequalities, e.equalities))
        jacobian = np.concatenate((e.inequality_jacobian, e.equality_jacobian))
        objective = float(e.objective)
        squares = e.gradient.dot(e.gradient) + rows.dot(rows) + np.vdot(jacobian, jacobian)
        if not math.isfinite(objective + float(squares)):
            _raise_non_finite(e, z)
        multipliers = np.minimum(np.maximum(multipliers, self.dual_lower), self.dual_upper)
        if self._first_gradient == 0.0:
            self._first_gradient = min(1.0, largest(e.gradient))
        residuals = self._residuals(z, multipliers, e.gradient, rows, jacobian)
        scales = self._scales(z, multipliers, e.gradient, jacobian)
        return Point(z, multipliers, objective, e.gradient, rows, jacobian, residuals, scales)

    def values(self, z: Array) -> tuple[float, Array]:
        """Objective and rows at ``z``; the objective is infinite where anything is not finite."""
        objective, inequalities, equalities = self.program.value(z)
        rows = np.concatenate((inequalities, equalities))
        if not math.isfinite(float(objective) + float(rows.dot(rows))):
            return math.inf, np.zeros_like(rows)
        return float(objective), rows

    def hessian(self, point: Point) -> Array:
        """Hessian of the Lagrangian, symmetrised.

        Raises
        ------
        NonFiniteError
            If an entry is NaN or infinite.
        ProblemError
            If it is not of shape ``(n, n)``.
        """
        mu, nu = self.split(point.multipliers)
        hessian = self.program.hessian(point.z, mu, nu)
        n = point.z.size
        if hessian.shape != (n, n):
            raise ProblemError(
                f"hessian() returned shape {hessian.shape}; expected {(n, n)}, one row and column "
                "a variable."
            )
        if not np.isfinite(hessian).all():
            raise NonFiniteError(
                f"The Hessian of the Lagrangian has entries that are NaN or infinite at z = "
                f"{_shown(point.z)}; check the second derivatives there or move the start."
            )
        symmetric: Array = 0.5 * (hessian + hessian.T)
        return symmetric

    def split(self, multipliers: Array) -> tuple[Array, Array]:
        """Multipliers of the inequalities and of the equalities."""
        return multipliers[: self.inequalities], multipliers[self.inequalities :]

    def violations(self, rows: Array) -> Array:
        """How far each row is from feasible."""
        violations = np.abs(rows)
        m = self.inequalities
        np.maximum(rows[:m], 0.0, out=violations[:m])
        return violations

    def quadratic(self, point: Point, hessian: Array) -> QuadraticProgram:
        """The model of the program at ``point``."""
        return QuadraticProgram(
            hessian=hessian,
            gradient=point.gradient,
            jacobian=point.jacobian,
            residual=point.rows,
            lower=self.lower - point.z,
            upper=self.upper - point.z,
            dual_lower=self.dual_lower,
            dual_upper=self.dual_upper,
        )

    def error(self, residuals: Residuals, scales: Scales) -> float:
        """The largest residual relative to its scale; violating an elastic row is no error.

        Nor is any multiplier of a row that is all but zero, however large that makes the product.
        """
        products = residuals.products / (scales.gradient * scales.reach)
        return max(
            residuals.stationarity / scales.gradient,
            largest(np.minimum(products, residuals.distances / scales.rows)),
            0.0 if self.elastic else infeasibility(residuals, scales),
        )

    def _scales(self, z: Array, multipliers: Array, gradient: Array, jacobian: Array) -> Scales:
        sizes, reach = np.abs(jacobian), np.abs(z)
        terms = max(
            largest(gradient),
            largest(np.abs(multipliers) @ sizes),
            _GRADIENT_FLOOR * self._first_gradient,
            self._least_gradient,
        )
        rows = sizes @ reach
        if rows.size:
            rows = np.maximum(rows, sizes.max(axis=1))
            rows[rows == 0.0] = 1.0
        return Scales(terms, max(1.0, largest(reach)), rows)

    def _residuals(
        self, z: Array, multipliers: Array, gradient: Array, rows: Array, jacobian: Array
    ) -> Residuals:
        reduced = gradient + multipliers @ jacobian
        bound_mu = np.zeros_like(reduced)
        if self._bounded:
            bound_mu += (z <= self._near_lower) * np.maximum(reduced, 0.0)
            bound_mu += (z >= self._near_upper) * np.minimum(reduced, 0.0)
            reduced -= bound_mu
        distances = np.abs(rows)
        if self.elastic:
            products = (self.dual_upper - multipliers) * np.maximum(rows, 0.0)
            products += (multipliers - self.dual_lower) * np.maximum(-rows, 0.0)
        else:
            products = np.abs(multipliers) * distances
            products[self.inequalities :] = 0.0
        violations = self.violations(rows)
        return Residuals(bound_mu, largest(reduced), violations, distances, products)


def infeasibility(residuals: Residuals, scales: Scales) -> float:
    """The largest violation of a row relative to the row's scale."""
    return largest(residuals.violations / scales.rows)


def check_shapes(linearisation: Linearisation, n: int) -> None:
    """Raise :class:`ProblemError` if a linearisation's arrays do not fit ``n`` variables."""
    e = linearisation
    expected = {
        "gradient": (e.gradient, (n,)),
        "inequality_jacobian": (e.inequality_jacobian, (e.inequalities.size, n)),
        "equality_jacobian": (e.equality_jacobian, (e.equalities.size, n)),
        "inequalities": (e.inequalities, (e.inequalities.size,)),
        "equalities": (e.equalities, (e.equalities.size,)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ProblemError(
                f"evaluate() returned {name} of shape {array.shape}; expected {shape} for {n} "
                "variables."
            )


def _raise_non_finite(linearisation: Linearisation, z: Array) -> None:
    parts = {
        "objective": np.array([linearisation.objective]),
        "gradient of the objective": linearisation.gradient,
        "inequality constraints": linearisation.inequalities,
        "Jacobian of the inequality constraints": linearisation.inequality_jacobian,
        "equality constraints": linearisation.equalities,
        "Jacobian of the equality constraints": linearisation.equality_jacobian,
    }
    for name, array in parts.items():
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            where = "" if name == "objective" else f" (first at index {tuple(map(int, bad[0]))})"
            raise NonFiniteError(
                f"The {name} is NaN or infinite{where} at z = {_shown(z)}; start inside the "
                "functions' domain, or bound the variables to it."
            )


def _shown(z: Array) -> str:
    return np.array2string(z, precision=6, threshold=8, edgeitems=3)
