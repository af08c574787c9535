"""A deterministic problem at one point (x, y), ready to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bilevel.errors import NotApplicableError, VariableError
from bilevel.evaluation import Evaluation
from bilevel.outer import QuasiNewton
from bilevel.problem import BilevelProblem
from bilevel.responses import Exact, Response
from bilevel.responses.base import fresh_track
from bilevel.responses.exact import EXACT_LIMIT, tightest
from bilevel.schedules import Constant
from bilevel.state import State, Track
from bilevel.trees import Tree
from bilevel.variables import Level


@contextmanager
def at(problem: BilevelProblem, x: Tree, y: Tree, penalty: float = 1.0) -> Iterator[State]:
    """A state at (x, y); parameters among the leaves end as they were.

    Raises
    ------
    NotApplicableError
        The objectives take batches, or y is too large for exact responses.
    VariableError, DomainError, OptionError
        x, y or the penalty is not what it should be.
    """
    if problem.uses_batches:
        raise NotApplicableError(
            "this diagnostic measures a deterministic problem, and an objective takes a batch: "
            "fix one, as in BilevelProblem(upper=lambda x, y: f(x, y, batch), ...)"
        )
    upper = Level("x", x, problem.upper_domain)
    lower = Level("y", y, problem.lower_domain)
    if not lower.leaves:
        raise VariableError("y is empty: a bilevel problem needs a lower-level variable")
    held = upper.values(), lower.values()
    try:
        yield measuring_state(problem, upper, lower, penalty)
    finally:
        upper.assign(held[0])
        lower.assign(held[1])


def measuring_state(
    problem: BilevelProblem, upper: Level, lower: Level, penalty: float = 1.0
) -> State:
    """A state over two levels with records and counters of its own, and no run behind it."""
    own = problem.lower_response
    return State(
        upper,
        lower,
        response=own if own is not None and own.exact else exact_response(lower),
        outer=QuasiNewton(),  # a state names one; nothing here takes an outer step
        schedule=Constant(penalty),
        original=Track(values=lower.values()),
    )


def exact_response(lower: Level) -> Exact:
    """The response solver that owes nothing to the run or the problem.

    Raises
    ------
    NotApplicableError
        y has too many entries for dense second derivatives.
    """
    if lower.size > EXACT_LIMIT:
        raise NotApplicableError(
            f"y has {lower.size} entries, and exact responses use dense second derivatives in y, "
            f"up to {EXACT_LIMIT} entries: give the problem an exact lower_response=, or measure a "
            "smaller instance"
        )
    return tightest(lower)


def require_upper_variable(state: State) -> None:
    """Refuse an empty x, at which no gradient in x exists."""
    if not state.upper.leaves:
        raise NotApplicableError(
            "x is empty (a simple bilevel problem), and this diagnostic is about gradients in x: "
            "use lower_gap(problem, x, y)"
        )


def respond(
    problem: BilevelProblem,
    state: State,
    response: Response,
    weight: float,
    evaluation: Evaluation,
    track: Track | None = None,
) -> Track:
    """Leave the minimiser of w f + g in the lower level's leaves; its multipliers are returned."""
    if track is None:
        track = fresh_track(response, problem, state)
    response.update(problem, state, track, weight, [evaluation])
    return track
