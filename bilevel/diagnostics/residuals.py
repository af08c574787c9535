"""The residuals of a solution, at any point."""

from __future__ import annotations

from bilevel.diagnostics.point import at, require_upper_variable
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.stationarity import fresh_stationarity
from bilevel.trees import Tree
from bilevel.verification import fresh_value


def lower_gap(problem: BilevelProblem, x: Tree, y: Tree) -> float:
    r"""How far y is from solving the lower level at x, in its objective.

    .. math:: g(x, y) - v(x), \qquad v(x) = \min_{y' \in Y} \{\, g(x, y') :
        c(x, y') \le 0,\; h(x, y') = 0 \,\}

    v is solved for from y, to about 1e-12; negative values beyond rounding mean that y violates the
    lower level's constraints. For a lower level that is not convex in y, v is the value of the
    local minimum near y.

    Parameters
    ----------
    problem : BilevelProblem
        A deterministic problem.
    x, y : tree of tensors
        The point; it is not changed.

    Raises
    ------
    InfeasibleError, ResponseError
        If the lower level has no solution at x, or it was not reached.
    NotApplicableError
        If the objectives take batches, or y is too large for an exact response.
    """
    with at(problem, x, y) as state:
        g = float(Evaluation(problem, state).lower().detach())
        return g - fresh_value(problem, state, state.response).value


def stationarity(problem: BilevelProblem, x: Tree, y: Tree, penalty: float) -> float:
    r"""How far x is from a stationary point of the penalised value, as in a ``Solution``.

    .. math:: \|x - \Pi_X(x - \nabla F_\gamma(x))\|, \qquad
        F_\gamma(x) = \min_y f(x, y) + \gamma\,(g(x, y) - v(x)).

    With upper constraints, the norm of the residual of the penalised problem's KKT system at
    (x, y).

    Parameters
    ----------
    problem : BilevelProblem
        A deterministic problem.
    x, y : tree of tensors
        The point; it is not changed. Without upper constraints y is only where the two responses
        are started from.
    penalty : float
        γ.

    Raises
    ------
    InfeasibleError, ResponseError
        If a response does not exist at x, or was not reached.
    NotApplicableError
        If x is empty, the objectives take batches, or y is too large for an exact response.
    """
    with at(problem, x, y, penalty) as state:
        require_upper_variable(state)
        slope = fresh_value(problem, state, state.response).gradient
        return fresh_stationarity(problem, state, state.response, penalty, slope).residual
