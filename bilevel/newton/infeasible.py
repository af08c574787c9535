"""When the constraints seem inconsistent: restore feasibility, or prove that there is none."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.errors import InfeasibleError
from bilevel.newton.arrays import Array
from bilevel.newton.kkt import Point, RowProgram, infeasibility
from bilevel.newton.program import FarkasCertificate, Linearisation, Program
from bilevel.newton.sequential import Outcome, SequentialQuadratic, Stop, unit_multiplier

# Violations up to this share of a row's scale are tolerated where no multipliers exist.
_FEASIBLE = 1e-6
#: Error of the least violation at which it proves that there is none, far above it.
_PROVEN = 1e-8
# Penalties tried, in units of |gradient| / |Jacobian|.
_PENALTIES = (1e1, 1e3, 1e5, 1e7)
# Weight that keeps steps short where many points violate least, in units of |Jacobian| / |z|.
_PROXIMAL = 1e-6
_NAMED_ROWS = 3


@dataclasses.dataclass(frozen=True)
class _Violation:
    """The constraints of a program alone: with unit penalties, its total violation."""

    program: Program

    @property
    def lower(self) -> Array:
        return self.program.lower

    @property
    def upper(self) -> Array:
        return self.program.upper

    def evaluate(self, z: Array) -> Linearisation:
        linearisation = self.program.evaluate(z)
        return dataclasses.replace(linearisation, objective=0.0, gradient=np.zeros_like(z))

    def value(self, z: Array) -> tuple[float, Array, Array]:
        _, inequalities, equalities = self.program.value(z)
        return 0.0, inequalities, equalities

    def hessian(self, z: Array, mu: Array, nu: Array) -> Array:
        objective = self.program.hessian(z, np.zeros_like(mu), np.zeros_like(nu))
        return self.program.hessian(z, mu, nu) - objective


def restore(rows: RowProgram, outcome: Outcome, tolerance: float, max_iterations: int) -> Outcome:
    r"""Continue a run that failed on its constraints.

    First the total violation :math:`\sum[c_i]_+ + \sum|h_j|` is minimised. If it stays positive,
    its multipliers prove the constraints inconsistent. Otherwise the program is solved with elastic
    constraints and growing penalties, whose solutions exist even where no multipliers do.

    Raises
    ------
    InfeasibleError
        If the least violation is above 1e-6 of a row's scale.
    """
    point = outcome.point
    iterations, interior = outcome.iterations, outcome.interior_point_solves
    if infeasibility(point.residuals, point.scales) > _FEASIBLE:
        least = _least_violation(rows, point, tolerance, max_iterations)
        if least is None:
            return outcome
        iterations += least.iterations
        interior += least.interior_point_solves
        point = rows.point(least.point.z, np.zeros_like(point.multipliers))
    unit = unit_multiplier(point)
    best = outcome
    for penalty in _PENALTIES:
        elastic = rows.with_penalty(penalty * unit)
        run = SequentialQuadratic(elastic, tolerance, max_iterations).run(
            elastic.point(point.z, point.multipliers)
        )
        iterations += run.iterations
        interior += run.interior_point_solves
        if run.stop != "converged":
            break
        point = run.point
        reached = infeasibility(point.residuals, point.scales)
        met = reached <= tolerance
        if met or reached <= _FEASIBLE:
            stop: Stop = "converged" if met else "irregular"
            best = dataclasses.replace(run, stop=stop)
        if met:
            break
    return dataclasses.replace(best, iterations=iterations, interior_point_solves=interior)


def _least_violation(
    rows: RowProgram, point: Point, tolerance: float, max_iterations: int
) -> Outcome | None:
    """Minimise the total violation; ``None`` if neither that nor a feasible point was reached."""
    equalities = rows.dual_upper.size - rows.inequalities
    # The multipliers of violated rows, whose curvature leads out where the Jacobian vanishes.
    multipliers = np.where(point.residuals.violations > 0.0, np.sign(point.rows), 0.0)
    slope = float(np.abs(point.jacobian).max())
    violation = RowProgram(_Violation(rows.program), rows.inequalities, equalities, 1.0, slope)
    proximal = _PROXIMAL * slope / point.scales.reach
    least = SequentialQuadratic(violation, tolerance, max_iterations, proximal).run(
        violation.point(point.z, multipliers)
    )
    if infeasibility(least.point.residuals, least.point.scales) <= _FEASIBLE:
        return least
    if least.stop == "converged" or least.error <= _PROVEN:
        raise _infeasible(violation, least)
    return None


def _infeasible(violation: RowProgram, least: Outcome) -> InfeasibleError:
    point = least.point
    mu, nu = violation.split(point.multipliers)
    gap = float(point.multipliers @ point.rows)
    certificate = FarkasCertificate(point.z, mu, nu, point.residuals.bound_mu, gap)
    sizes = point.residuals.violations
    worst = [int(i) for i in np.argsort(-sizes)[:_NAMED_ROWS] if sizes[i] > 0.0]
    conflict = [int(i) for i in np.flatnonzero(np.abs(point.multipliers) > 1e-9)]
    violated = ", ".join(f"{_name(violation, i)} by {sizes[i]:.3g}" for i in worst)
    involved = ", ".join(_name(violation, i) for i in conflict[: 2 * _NAMED_ROWS])
    more = len(conflict) - 2 * _NAMED_ROWS
    bounds = " and bounds" if np.any(point.residuals.bound_mu) else ""
    return InfeasibleError(
        f"no point satisfies the constraints: where their total violation is least, {violated} "
        f"{'is' if len(worst) == 1 else 'are'} violated. In conflict: {involved}"
        f"{f' and {more} more' if more > 0 else ''}{bounds}. Expected a feasible point; restrict "
        "the upper variable to where these constraints can be met, or relax them: "
        "response=Exact(elastic=...)",
        certificate,
    )


def _name(rows: RowProgram, row: int) -> str:
    m = rows.inequalities
    return f"inequality {row}" if row < m else f"equality {row - m}"
