"""The parts a solver uses where the user named none: the most exact that fits the problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bilevel.errors import NotApplicableError, OptionError, VariableError
from bilevel.outer.base import Outer
from bilevel.outer.first_order import FirstOrder
from bilevel.outer.quasi_newton import QuasiNewton
from bilevel.outer.sqp import SQP
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.responses.exact import EXACT_LIMIT, Exact
from bilevel.responses.gradient_descent import GradientDescent
from bilevel.responses.max_min import MaxMin
from bilevel.schedules import Schedule, as_schedule
from bilevel.variables import Level

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

#: Largest problem, in entries of both levels, whose outer step is an SQP step unless asked.
SQP_LIMIT = 100


def choose(
    solver: PenaltySolver, problem: BilevelProblem, upper: Level, lower: Level
) -> tuple[Response, Outer, Schedule]:
    """Response, outer step and penalty schedule for a problem of this size and form."""
    if lower.size == 0:
        raise VariableError(
            "y has no entries, and a bilevel problem needs a lower-level variable; only x may be "
            "empty"
        )
    response = solver.response or _response(solver, problem, lower)
    if response.exact and (upper.wrapped or lower.wrapped):
        raise NotApplicableError(
            f"{type(response).__name__} solves the lower level by derivatives that pass by DDP and "
            "fully_shard: give lower_lr= or lower_optimizer= for first-order steps"
        )
    outer = solver.outer or _outer(solver, problem, upper, lower, response)
    if outer.needs_exact_response and not solver.tracks_original:
        raise NotApplicableError(
            f"{type(outer).__name__} compares values of the penalised objective, and "
            f"{type(solver).__name__} leaves the value function in it out: give it a step size "
            "(upper_lr=...), or use PBGD or BLOCC"
        )
    if outer.needs_exact_response and not response.exact:
        raise NotApplicableError(
            f"{type(outer).__name__} needs exact responses and {type(response).__name__} gives "
            "approximate ones: use Exact(), CvxpyResponse(...) or the problem's own response, or a "
            "first-order outer step (upper_lr=...)"
        )
    if problem.uses_batches and not outer.takes_batches:
        raise NotApplicableError(
            f"{type(outer).__name__} is for problems without data, and the objectives take a "
            "batch: let them hold the whole data set, or use first-order steps (upper_lr=, "
            "lower_lr=)"
        )
    if solver.accumulate > 1 and outer.needs_exact_response:
        raise NotApplicableError(
            f"accumulate={solver.accumulate} averages the gradients of micro-batches, and "
            f"{type(outer).__name__} compares values of f and g that it takes whole: give it the "
            "data at once, or use first-order steps (upper_lr=...)"
        )
    if solver.autocast is not None and response.exact:
        raise NotApplicableError(
            f"autocast={solver.autocast} evaluates the objectives in low precision, and "
            f"{type(response).__name__} needs double precision: leave autocast= out, or use "
            "first-order steps (lower_lr=...)"
        )
    if solver.clip_norm is not None and not _clips(solver, response, outer):
        raise OptionError(
            f"clip_norm={solver.clip_norm} would have no effect on {type(response).__name__} and "
            f"{type(outer).__name__} here: leave it out, or use first-order steps (upper_lr=..., "
            "lower_lr=...); parts of your own are given theirs, as FirstOrder(clip_norm=...)"
        )
    if solver.penalty is not None:
        schedule = as_schedule(solver.penalty)
    else:
        schedule = outer.default_penalty()
    return response, outer, schedule


def _clips(solver: PenaltySolver, response: Response, outer: Outer) -> bool:
    chosen = [
        part
        for part, given in ((response, solver.response), (outer, solver.outer))
        if given is None
    ]
    return any(isinstance(part, GradientDescent | FirstOrder) for part in chosen)


def _response(solver: PenaltySolver, problem: BilevelProblem, lower: Level) -> Response:
    first_order = (solver.lower_lr, solver.lower_optimizer, solver.inner_steps)
    if any(option is not None for option in first_order):
        if problem.constrained:
            if solver.lower_optimizer is not None or solver.lower_scheduler is not None:
                raise NotApplicableError(
                    "lower-level constraints are kept by plain primal-dual steps: give lower_lr= "
                    "or response=MaxMin(...), and no lower_optimizer= or lower_scheduler="
                )
            return MaxMin(steps=solver.inner_steps or 1, lr=solver.lower_lr)
        return GradientDescent(
            steps=solver.inner_steps or 1,
            lr=solver.lower_lr,
            optimizer=solver.lower_optimizer,
            scheduler=solver.lower_scheduler,
            clip_norm=solver.clip_norm,
        )
    if problem.lower_response is not None:
        return problem.lower_response
    if problem.uses_batches or lower.size > EXACT_LIMIT:
        size = "it is stochastic" if problem.uses_batches else f"y has {lower.size} entries"
        raise OptionError(
            f"this lower level is not solved exactly by default ({size}): give lower_lr= (and "
            "inner_steps=) or lower_optimizer= for first-order steps, or response=Exact()"
        )
    return Exact()


def _outer(
    solver: PenaltySolver,
    problem: BilevelProblem,
    upper: Level,
    lower: Level,
    response: Response,
) -> Outer:
    asked = solver.upper_lr is not None or solver.upper_optimizer is not None
    if not asked and solver.tracks_original and response.exact and not problem.uses_batches:
        if upper.size + lower.size <= SQP_LIMIT and type(response) is Exact:
            return SQP()
        if upper.leaves and problem.upper_constraints is None:
            return QuasiNewton()
    return FirstOrder(
        lr=solver.upper_lr,
        optimizer=solver.upper_optimizer,
        scheduler=solver.upper_scheduler,
        clip_norm=solver.clip_norm,
    )
