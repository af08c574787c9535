"""The outer step for small deterministic problems: SQP on the penalised problem in (x, y)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from bilevel.calculus import Array
from bilevel.errors import InfeasibleError, NonFiniteError, NotApplicableError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.newton import Descent, minimise_elastic
from bilevel.options import check_count, check_positive
from bilevel.outer.base import Outer
from bilevel.outer.penalised import Follower, PenalisedProgram
from bilevel.outer.value_function import ValueFunction
from bilevel.problem import BilevelProblem
from bilevel.program import joint_program, minimising
from bilevel.responses.base import fresh_track
from bilevel.responses.exact import Exact, tightest
from bilevel.schedules import Geometric, Schedule, settled
from bilevel.state import State
from bilevel.stationarity import fresh_stationarity
from bilevel.verification import fresh_value, restoring

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

#: The first weight of the relaxed lower level, above the multipliers of well-scaled problems.
#: Squared where it is too small.
_FIRST_ELASTIC = 10.0
#: Its margin in the program over (x, y).
_ELASTIC_MARGIN = 10.0
#: Weight beyond which multipliers count as unbounded: there is no Slater point.
_LARGEST_ELASTIC = 1e8
#: Relative size of a nudge off a kink, and the relative improvement that makes it worth while.
_NUDGE, _IMPROVEMENT = 1e-3, 1e-8
#: Relative residual above which an answer is no stationary point.
_STATIONARY = 1e-6
#: Total violation, relative to the iterate, that the relaxation may leave.
_SLACK = 1e-8


@dataclass(frozen=True, kw_only=True)
class SQP(Outer):
    r"""Solve the penalised problem of the current γ in (x, y) together.

    .. math:: \min_{x \in X,\, y \in Y} f(x, y) + \gamma\,[g(x, y) - v(x)]
        \quad\text{s.t.}\quad c(x, y) \le 0,\ h(x, y) = 0,\ C(x, y) \le 0

    by sequential quadratic programming, with v and its derivatives from an exact original response
    (envelope and implicit function theorems). One outer step is one such solve, warm-started from
    the last, so a growing penalty schedule is a continuation. Both levels' constraints are relaxed
    by exact penalties, so an x without a feasible y is no obstacle on the way; a run that ends at
    one raises :class:`~bilevel.errors.InfeasibleError`.

    For deterministic problems with up to about a hundred entries in x and y together.

    Parameters
    ----------
    max_iterations : int
        Bound on the SQP iterations in one step.
    tolerance : float
        Relative residual of the KKT system at which one step is done.
    """

    max_iterations: int = 60
    tolerance: float = 1e-10
    needs_exact_response = True
    takes_batches = False

    def __post_init__(self) -> None:
        check_count("max_iterations", self.max_iterations)
        check_positive("tolerance", self.tolerance)

    def default_penalty(self) -> Schedule:
        """A continuation from 1 to 1e6 in factors of ten."""
        return Geometric(1.0, 1e6, steps=6)

    def start(self, problem: BilevelProblem, state: State) -> None:
        """Set the relaxation's first weight; refuse responses that the relaxation cannot extend."""
        if type(state.response) is not Exact:
            raise NotApplicableError(
                "SQP extends the lower level beyond its feasible x by a relaxation that only "
                f"Exact() knows, and the response is {type(state.response).__name__}: use "
                "QuasiNewton() or DifferenceOfConvex(), or leave response= out"
            )
        state.outer_state["elastic"] = _FIRST_ELASTIC

    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Solve at this penalty; finished once the schedule has reached its last value."""
        evaluation = evaluations[0]

        def objective() -> Tensor:
            f, g = evaluation.pair(through_x=True)
            return f + penalty * g

        joint = joint_program(problem, state, objective)
        z = joint.point()
        while True:
            elastic = state.outer_state["elastic"]
            value_function = ValueFunction(problem, state, elastic=elastic)
            program = PenalisedProgram(joint, value_function, penalty, state)
            weight = _ELASTIC_MARGIN * penalty * elastic
            run = partial(
                minimise_elastic,
                program,
                penalty=weight,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
                settle=Follower(joint, evaluation, penalty, weight, state).settle,
            )
            try:
                with minimising("f + γ (g - v) over (x, y)"):
                    descent = run(z)
            except ResponseError:  # unbounded below where the relaxation is too weak
                if elastic >= _LARGEST_ELASTIC:
                    raise
                state.outer_state["elastic"] = _stronger(elastic)
                continue
            joint.place(descent.z)
            if settled(state.schedule, state.step):
                descent = self._leave_kink(problem, state, penalty, descent, run)
                joint.place(descent.z)
            z, value = descent.z, value_function()
            tight = descent.violation <= _SLACK * (1.0 + float(np.abs(z).max()))
            enough = tight and value.largest_multiplier < 0.9 * elastic
            if enough or elastic >= _LARGEST_ELASTIC:
                break
            state.outer_state["elastic"] = _stronger(elastic)
        state.record["value"] = value.value
        evaluation.pair()
        # At the iteration limit the next step goes on.
        state.finished = settled(state.schedule, state.step) and not descent.limited
        if state.finished and not tight:
            _require_feasible(problem, state)

    def _leave_kink(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        best: Descent,
        run: Callable[[Array], Descent],
    ) -> Descent:
        """Where the answer is no stationary point after all, look beyond the kink it sits on.

        -v may have a concave one where the lower level's multipliers are not unique. The derivative
        at hand then may point back from either side; a nudge of x shows the others.
        """
        n = state.upper.size
        if not n or _is_stationary(problem, state, penalty):
            return best
        direction = np.random.default_rng(0).standard_normal(n)
        for sign in (1.0, -1.0):
            nudged = best.z.copy()
            nudged[:n] += sign * _NUDGE * (1.0 + np.abs(nudged[:n])) * direction
            other = run(nudged)
            if other.merit < best.merit - _IMPROVEMENT * (1.0 + abs(best.merit)):
                best = other
        return best


def _stronger(elastic: float) -> float:
    return min(elastic**2, _LARGEST_ELASTIC)


def _require_feasible(problem: BilevelProblem, state: State) -> None:
    """Refuse an end that the relaxation alone made possible."""
    with restoring(state.lower), suppress(ResponseError):
        fresh = Evaluation(problem, state)
        response = tightest(state.lower)
        track = fresh_track(response, problem, state)
        response.update(problem, state, track, 0.0, [fresh])


def _is_stationary(problem: BilevelProblem, state: State, penalty: float) -> bool:
    """Whether fresh responses at x confirm it; also where none is to be had."""
    response = tightest(state.lower)
    with suppress(InfeasibleError, ResponseError, NonFiniteError), restoring(state.lower):
        slope = fresh_value(problem, state, response).gradient
        return fresh_stationarity(problem, state, response, penalty, slope).within(_STATIONARY)
    return True
