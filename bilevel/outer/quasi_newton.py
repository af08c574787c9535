"""The outer step for medium deterministic problems: L-BFGS on the penalised value in x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bilevel.calculus import Array
from bilevel.domains import Box, Reals
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.options import check_count, check_positive, check_share
from bilevel.outer.base import Outer
from bilevel.problem import BilevelProblem
from bilevel.schedules import Geometric, Schedule, settled
from bilevel.state import State
from bilevel.variables import flatten

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver


@dataclass(frozen=True, kw_only=True)
class QuasiNewton(Outer):
    r"""Minimise the penalised value :math:`F_\gamma(x) = \min_y f + \gamma(g - v(x))` over x.

    By SciPy's L-BFGS-B; each evaluation takes both exact responses and the solver's outer gradient.
    One outer step is one such solve, warm-started from the last. X is the whole space or a box, and
    there are no upper constraints; the size of x is of no concern, that of y is the response's. The
    first trial point lies at distance 1 from the start: choose the unit of x accordingly.

    Parameters
    ----------
    max_iterations : int
        Bound on L-BFGS-B's iterations in one step.
    tolerance : float
        Bound on the largest entry of the projected gradient.
    value_tolerance : float
        Stop also where an iteration reduces the value by less than this share of it, for values
        with kinks, at which the gradient need not vanish.
    """

    max_iterations: int = 500
    tolerance: float = 1e-8
    value_tolerance: float = 0.0
    needs_exact_response = True
    takes_batches = False

    def __post_init__(self) -> None:
        check_count("max_iterations", self.max_iterations)
        check_positive("tolerance", self.tolerance)
        check_share("value_tolerance", self.value_tolerance, below_one=True)

    def default_penalty(self) -> Schedule:
        """A continuation from 1e2 to 1e6 in factors of a hundred."""
        return Geometric(1e2, 1e6, steps=2)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Refuse an empty x, and sets that L-BFGS-B cannot keep."""
        if not state.upper.leaves:
            raise NotApplicableError("QuasiNewton moves x, and x is empty: use SQP()")
        if problem.upper_constraints is not None:
            raise NotApplicableError("QuasiNewton takes no upper_constraints: use SQP()")
        for name, domain in zip(state.upper.names, state.upper.domains, strict=True):
            if not isinstance(domain, Reals | Box):
                raise NotApplicableError(
                    f"QuasiNewton keeps boxes only, and {name} lives in {type(domain).__name__}: "
                    "use SQP(), or a first-order step (upper_lr=...)"
                )

    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Minimise at this penalty; finished once the schedule has reached its last value."""
        from scipy.optimize import minimize

        level = state.upper

        def penalised_value(x: Array) -> tuple[float, Array]:
            level.assign_vector(x)
            solver.respond(problem, state, penalty, evaluations)
            level.clear_gradients()
            solver.outer_gradient(problem, state, penalty, evaluations)
            record = state.record
            value = float(record["upper"]) + penalty * float(record["lower"] - record["value"])
            return value, flatten(
                [leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad
                 for leaf in level.leaves]
            )  # fmt: skip

        low, high = level.bounds()

        def residual(x: Array, slope: Array) -> Array:
            step: Array = x - np.clip(x - slope, low, high)
            return step

        start, unit = level.vector(), 1.0
        if state.step == 0:
            # Within bounds SciPy's first trial step is the gradient itself, however small or large.
            slope = penalised_value(start)[1]
            unit = float(np.linalg.norm(slope[residual(start, slope) != 0.0])) or 1.0

        def scaled(x: Array) -> tuple[float, Array]:
            value, slope = penalised_value(x)
            return value / unit, slope / unit

        result = minimize(
            scaled,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={
                "maxiter": self.max_iterations,
                "gtol": self.tolerance / unit,
                "ftol": self.value_tolerance,
            },
        )
        x = np.asarray(result.x, dtype=np.float64)
        state.record["stationarity"] = float(np.linalg.norm(residual(x, penalised_value(x)[1])))
        reached_limit = result.nit >= self.max_iterations  # then the next step goes on
        state.finished = settled(state.schedule, state.step) and not reached_limit
