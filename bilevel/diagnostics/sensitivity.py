"""How the original response moves with x: its KKT system, differentiated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array, gradient, hessian, jacobian
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.program import lower_equalities, lower_inequalities
from bilevel.state import State, Track

#: Relative size below which a slack, a multiplier or a residual counts as zero.
_ZERO = 1e-9


def response_jacobian(
    problem: BilevelProblem, state: State, track: Track, evaluation: Evaluation
) -> Array:
    r"""D = dy_g/dx at a state whose leaves hold the exact original response.

    With L the lower level's Lagrangian and A the Jacobian of the equalities and of the strongly
    active inequalities (positive multiplier), D is the solution of the differentiated KKT system

    .. math:: \begin{pmatrix} L_{yy} & A_y^\top \\ A_y & 0 \end{pmatrix}
        \begin{pmatrix} D \\ \Lambda \end{pmatrix}
        = -\begin{pmatrix} L_{yx} \\ A_x \end{pmatrix},

    in the entries of y that no bound holds. It is solved in the null space of :math:`A_y`, so the
    constraints' gradients may be linearly dependent.

    Raises
    ------
    NotApplicableError
        The response is not differentiable at this x, or not isolated.
    """
    n = state.upper.size
    leaves = state.upper.leaves + state.lower.leaves
    c, h = lower_inequalities(problem, state), lower_equalities(problem, state)
    mu, nu = _vector(track.inequality_multipliers, c), _vector(track.equality_multipliers, h)
    total = evaluation.lower(through_x=True)
    for multipliers, values in ((mu, c), (nu, h)):
        if len(values):
            total = total + torch.dot(multipliers, values)
    second = hessian(total, leaves)
    reduced = gradient(total, state.lower.leaves)  # the multipliers of the bounds
    rows = jacobian(c, leaves)
    active = c.detach().cpu().numpy() >= -_ZERO * _scale(rows, state)
    strong = active & (mu.cpu().numpy() > _ZERO * max(1.0, float(mu.max()) if len(mu) else 0.0))
    held, touching = _at_bounds(state, reduced)

    free = np.flatnonzero(~held)
    moved = np.zeros((state.lower.size, n))
    kept = np.concatenate([rows[strong], jacobian(h, leaves)])
    moved[free] = _solve(second[n + free], kept, n, free)

    weak = rows[active & ~strong]
    drift = weak[:, :n] + weak[:, n:] @ moved
    if np.abs(drift).max(initial=0.0) > _ZERO * (1.0 + np.abs(weak).max(initial=0.0)) or (
        np.abs(moved[touching]).max(initial=0.0) > _ZERO * (1.0 + np.abs(moved).max(initial=0.0))
    ):
        raise NotApplicableError(
            "the lower level's response has a kink at this x: a constraint holds with equality and "
            "a zero multiplier there, and leaves or joins the active ones as x moves. Implicit "
            "differentiation needs strict complementarity: move x a little, or use "
            "method='penalty', whose gradient exists"
        )
    return moved


def _solve(second: Array, rows: Array, n: int, free: np.ndarray) -> Array:
    """D in the free entries: a particular solution of A_y D = -A_x, then the null space of A_y."""
    left, right = rows[:, n + free], -rows[:, :n]
    curvature, coupling = second[:, n + free], second[:, :n]
    _, sizes, basis = np.linalg.svd(left)
    rank = int((sizes > _ZERO * sizes.max(initial=1.0)).sum())
    null = basis[rank:].T
    particular = np.linalg.pinv(left, rcond=_ZERO) @ right
    if np.abs(left @ particular - right).max(initial=0.0) > _ZERO * (
        1.0 + np.abs(right).max(initial=0.0)
    ):
        raise NotApplicableError(
            "the active lower-level constraints cannot all stay active as x moves, so the response "
            "has a kink at this x: move x a little, or use method='penalty'"
        )
    within = null.T @ curvature @ null
    if len(within):
        least = float(np.linalg.eigvalsh(within).min())
        if least <= 1e-12 * float(np.abs(curvature).max(initial=1.0)):
            raise NotApplicableError(
                "the lower level's solution is not isolated: the Hessian of its Lagrangian has the "
                f"eigenvalue {least:.1e} along the active constraints, expected positive ones. "
                "Without a unique response the hypergradient is not defined; add a small strongly "
                "convex term in y to lower"
            )
    step = np.linalg.solve(within, -null.T @ (coupling + curvature @ particular))
    answer: Array = particular + null @ step
    return answer


def _at_bounds(state: State, reduced: Array) -> tuple[np.ndarray, np.ndarray]:
    """Entries of y that a bound holds, and entries that touch a bound without pressing on it."""
    low, high = state.lower.bounds()
    y = state.lower.vector()
    slack = _ZERO * np.maximum(1.0, np.abs(y))
    at_bound = (y <= low + slack) | (y >= high - slack)
    pressing = np.abs(reduced) > _ZERO * np.abs(reduced).max(initial=1.0)
    held = at_bound & (pressing | (low == high))
    return held, at_bound & ~held


def _scale(rows: Array, state: State) -> Array:
    """The size of the terms that cancel in each constraint."""
    z = np.concatenate([state.upper.vector(), state.lower.vector()])
    sizes: Array = np.maximum(1.0, np.abs(rows) @ np.abs(z))
    return sizes


def _vector(multipliers: Tensor | None, values: Tensor) -> Tensor:
    return torch.zeros_like(values.detach()) if multipliers is None else multipliers
