"""How the original response moves with x, where that is well defined."""

from __future__ import annotations

import numpy as np

from bilevel.calculus import Array
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.implicit import ZERO, lower_system, motion
from bilevel.problem import BilevelProblem
from bilevel.state import State, Track


def response_jacobian(
    problem: BilevelProblem, state: State, track: Track, evaluation: Evaluation
) -> Array:
    """D = dy_g/dx at a state whose leaves hold the exact original response.

    The solution of the KKT system, differentiated with the equalities and the strongly active
    inequalities (those with a positive multiplier): see :func:`bilevel.implicit.motion`.

    Raises
    ------
    NotApplicableError
        The response is not differentiable at this x, or not isolated.
    """
    n = state.upper.size
    system = lower_system(problem, state, track, evaluation)
    rows = system.inequality_jacobian
    active = system.inequalities >= -ZERO * _scale(rows, state)
    strong = active & system.pressing
    found = motion(system, np.concatenate([rows[strong], system.equality_jacobian]))
    if found.defect > ZERO:
        raise NotApplicableError(
            "the active lower-level constraints cannot all stay active as x moves, so the response "
            "has a kink at this x: move x a little, or use hypergradient(..., method='penalty')"
        )
    if not found.isolated:
        raise NotApplicableError(
            "the lower level's solution is not isolated: the Hessian of its Lagrangian has the "
            f"eigenvalue {found.least_curvature:.1e} along the active constraints, expected "
            "positive ones. Without a unique response the hypergradient is not defined; add a "
            "small strongly convex term in y to lower"
        )
    moved, touching = found.jacobian, system.touching
    weak = rows[active & ~strong]
    drift = weak[:, :n] + weak[:, n:] @ moved
    if np.abs(drift).max(initial=0.0) > ZERO * (1.0 + np.abs(weak).max(initial=0.0)) or (
        np.abs(moved[touching]).max(initial=0.0) > ZERO * (1.0 + np.abs(moved).max(initial=0.0))
    ):
        raise NotApplicableError(
            "the lower level's response has a kink at this x: a constraint holds with equality and "
            "a zero multiplier there, and leaves or joins the active ones as x moves. Implicit "
            "differentiation needs strict complementarity: move x a little, or use "
            "hypergradient(..., method='penalty'), whose gradient exists"
        )
    return moved


def _scale(rows: Array, state: State) -> Array:
    """The size of the terms that cancel in each constraint."""
    z = np.concatenate([state.upper.vector(), state.lower.vector()])
    sizes: Array = np.maximum(1.0, np.abs(rows) @ np.abs(z))
    return sizes
