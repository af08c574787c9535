"""Solve a smooth program to rounding accuracy: the entry point."""

from __future__ import annotations

import math

import numpy as np

from bilevel.errors import DomainError, NonFiniteError, OptionError, ResponseError, VariableError
from bilevel.newton.arrays import Array, largest
from bilevel.newton.infeasible import restore
from bilevel.newton.kkt import RowProgram, check_shapes
from bilevel.newton.program import Answer, Program
from bilevel.newton.sequential import Outcome, SequentialQuadratic


def solve(
    program: Program,
    z0: Array,
    *,
    mu0: Array | None = None,
    nu0: Array | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
    elastic: float | None = None,
) -> Answer:
    r"""Minimise a small smooth program, dense and in float64.

    .. math:: \min_z\ \varphi(z) \quad\text{s.t.}\quad
              c(z) \le 0\ (\mu),\quad h(z) = 0\ (\nu),\quad l \le z \le u

    A convex quadratic program takes one iteration. If the active set that ``(z0, mu0)`` predicts is
    the solution's, that iteration is a single linear system; otherwise the active set is exchanged
    a few times, and only then left to an interior-point method, whose answer is polished to
    rounding. Other programs take a few iterations of a globalised Newton method; nonconvex ones
    descend to a local minimum. Without constraints the method is a damped Newton method.

    Parameters
    ----------
    program : Program
        The functions.
    z0 : (n,) array
        Start; it is projected on the bounds.
    mu0, nu0 : (m,) and (p,) array, optional
        Guess of the multipliers; zero if not given.
    tolerance : float
        Largest residual, relative to the magnitudes of the terms that cancel in it (gradients,
        :math:`J^\top\mu`, :math:`\nabla^2L\,z`, :math:`Jz`). The answer is usually several orders
        better, since one more Newton step is taken when it is met.
    max_iterations : int
        Largest number of Newton steps.
    elastic : float, optional
        :math:`\rho > 0` relaxes the constraints (not the bounds) by the exact penalty
        :math:`\rho(\sum[c_i]_+ + \sum|h_j|)`. The constraints may then be inconsistent; the
        solution is that of the program where this has multipliers below :math:`\rho`; and always
        :math:`\mu\le\rho,\ |\nu|\le\rho`.

    Returns
    -------
    Answer
        The solution with its multipliers and residuals.

    Raises
    ------
    InfeasibleError
        If no point satisfies the constraints (for nonlinear ones: none near a stationary point of
        their violation); ``certificate`` is a :class:`FarkasCertificate`. Violations below 1e-6 of
        a row's scale are tolerated, with ``regular=False``, since feasible sets without an interior
        admit no better.
    ResponseError
        If the program is unbounded below or the method does not converge.
    NonFiniteError
        If a value or derivative is NaN or infinite at the start or an iterate.
    VariableError, ProblemError, DomainError, OptionError
        If shapes, bounds or options are wrong.
    """
    _check_options(tolerance, max_iterations, elastic)
    z = feasible_start(program, z0)
    linearisation = program.evaluate(z)
    check_shapes(linearisation, z.size)
    m, p = linearisation.inequalities.size, linearisation.equalities.size
    multipliers = np.concatenate((_multipliers("mu0", mu0, m), _multipliers("nu0", nu0, p)))
    rows = RowProgram(program, m, p, math.inf if elastic is None else elastic)
    point = rows.point(z, multipliers, linearisation)
    outcome = SequentialQuadratic(rows, tolerance, max_iterations).run(point)
    if outcome.stop != "converged" and elastic is None and m + p:
        outcome = restore(rows, outcome, tolerance, max_iterations)
    if outcome.stop not in ("converged", "irregular"):
        raise ResponseError(_failure(outcome, tolerance))
    return _answer(rows, outcome)


def _answer(rows: RowProgram, outcome: Outcome) -> Answer:
    point, residuals = outcome.point, outcome.point.residuals
    mu, nu = rows.split(point.multipliers)
    slack = float(residuals.violations.sum()) if rows.elastic else 0.0
    return Answer(
        z=point.z,
        mu=mu,
        nu=nu,
        bound_mu=residuals.bound_mu,
        objective=point.objective,
        stationarity=residuals.stationarity,
        violation=largest(residuals.violations),
        complementarity=residuals.complementarity,
        iterations=outcome.iterations,
        interior_point_solves=outcome.interior_point_solves,
        elastic_slack=slack,
        regular=outcome.stop == "converged",
    )


def _failure(outcome: Outcome, tolerance: float) -> str:
    residuals = outcome.point.residuals
    causes = {
        "limit": "ran out of iterations (raise max_iterations, or start closer)",
        "divergent": "met multipliers that grow without bound (the feasible set may have no "
        "interior; relax the constraints a little, or take Exact(elastic=...))",
        "stalled": "found no step that lessens its merit function (check that the derivatives "
        "match the values; loosen the tolerance if the functions are only evaluated to it)",
        "inconsistent": "met constraints whose linearisation has no solution (start closer to the "
        "feasible set, or take Exact(elastic=...))",
    }
    return (
        f"Newton's method {causes[outcome.stop]} after {outcome.iterations} iterations: "
        f"stationarity {residuals.stationarity:.2e}, "
        f"violation {largest(residuals.violations):.2e}, "
        f"complementarity {residuals.complementarity:.2e}, scaled error {outcome.error:.2e}; "
        f"expected at most {tolerance:.2e}. Scaling the variables to similar magnitudes and a "
        "strongly convex objective help."
    )


def feasible_start(program: Program, z0: Array) -> Array:
    """Check a start and project it on the bounds."""
    z = np.asarray(z0, dtype=np.float64)
    if z.ndim != 1 or program.lower.shape != z.shape or program.upper.shape != z.shape:
        raise VariableError(
            f"z0 has shape {z.shape}, lower {program.lower.shape} and upper {program.upper.shape}; "
            "expected one shape (n,)."
        )
    if not np.isfinite(z).all():
        raise NonFiniteError(f"z0 has NaN or infinite entries: {z}; start from a finite point.")
    crossed = np.flatnonzero(~(program.lower <= program.upper))
    if crossed.size:
        j = int(crossed[0])
        raise DomainError(
            f"lower[{j}] = {program.lower[j]} and upper[{j}] = {program.upper[j]}; expected "
            "lower <= upper for every variable."
        )
    projected: Array = np.minimum(np.maximum(z, program.lower), program.upper)
    return projected


def _multipliers(name: str, guess: Array | None, size: int) -> Array:
    if guess is None:
        return np.zeros(size)
    multipliers = np.asarray(guess, dtype=np.float64)
    if multipliers.shape != (size,):
        raise VariableError(
            f"{name} has shape {multipliers.shape}; expected {(size,)}, one entry a constraint."
        )
    if not np.isfinite(multipliers).all():
        raise NonFiniteError(f"{name} has NaN or infinite entries; pass None to start from zero.")
    return multipliers


def _check_options(tolerance: float, max_iterations: int, elastic: float | None) -> None:
    if not 0.0 < tolerance < 1.0:
        raise OptionError(
            f"tolerance is {tolerance!r}; expected a number in (0, 1), such as 1e-10."
        )
    if max_iterations < 1:
        raise OptionError(f"max_iterations is {max_iterations!r}; expected at least 1.")
    if elastic is not None and not 0.0 < elastic < math.inf:
        raise OptionError(
            f"elastic is {elastic!r}; expected a positive finite penalty, or None for constraints "
            "that must hold."
        )
