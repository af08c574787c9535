"""PBGD-Free's bias, at any point."""

from __future__ import annotations

from bilevel.bias import Bias, measure_bias
from bilevel.diagnostics.point import at, require_upper_variable, respond
from bilevel.errors import NotApplicableError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.trees import Tree


def bias(problem: BilevelProblem, x: Tree, y: Tree, penalty: float, *, solve: bool = False) -> Bias:
    r"""PBGD-Free's bias at x, at the cost of one original response.

    The gradient of the penalised value is what PBGD-Free descends along, plus what it omits:

    .. math:: \nabla F_\gamma(x) = \underbrace{\nabla_x f(x, y_\gamma)}_{\text{kept}}
        + \underbrace{\gamma\,[\nabla_x L_g(x, y_\gamma, \mu_\gamma)
        - \nabla_x L_g(x, y_g, \mu_g)]}_{\text{omitted}}

    The omitted term need not vanish as γ grows: it tends to the part of the hypergradient that goes
    through the lower level.

    Parameters
    ----------
    problem : BilevelProblem
        A deterministic problem.
    x, y : tree of tensors
        The point, with y the perturbed response :math:`y_\gamma`; it is not changed.
    penalty : float
        γ.
    solve : bool
        Solve for the perturbed response first, from y. Needed with lower-level constraints, whose
        multipliers come with it.

    Raises
    ------
    NotApplicableError
        If x is empty, the objectives take batches, y is too large for an exact response, or the
        lower level has constraints and ``solve`` is false.
    InfeasibleError, ResponseError
        If a response does not exist at x, or was not reached.

    References
    ----------
    Jiang et al. 2025, arXiv:2507.20400, Proposition 2 (the bias may stay of order one).
    """
    if problem.constrained and not solve:
        raise NotApplicableError(
            "with lower-level constraints the bias also needs the multipliers of the perturbed "
            "response: pass solve=True"
        )
    with at(problem, x, y, penalty) as state:
        require_upper_variable(state)
        if solve:
            evaluation = Evaluation(problem, state)
            state.perturbed = respond(problem, state, state.response, 1.0 / penalty, evaluation)
        return measure_bias(problem, state, penalty, state.response)
