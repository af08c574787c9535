"""The gradient of the hyper-objective φ(x) = f(x, y_g(x)) for small problems, in three ways."""

from __future__ import annotations

import numpy as np
import torch

from bilevel.bias import gradient_parts
from bilevel.calculus import Array, gradient
from bilevel.diagnostics.point import at, exact_response, require_upper_variable, respond
from bilevel.diagnostics.sensitivity import response_jacobian
from bilevel.errors import OptionError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.trees import Tree, rebuild
from bilevel.variables import unflatten

METHODS = ("implicit", "penalty", "finite-differences")


def hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y0: Tree,
    method: str = "implicit",
    penalty: float | None = None,
) -> Tree:
    r"""∇φ(x) of the hyper-objective :math:`\varphi(x) = f(x, y_g(x))`.

    ``"implicit"`` differentiates the KKT system of the original response at its strongly active
    constraints, with exact second derivatives:

    .. math:: \nabla\varphi(x) = \nabla_x f(x, y_g) + D^\top \nabla_y f(x, y_g),
        \qquad D = \frac{d y_g}{d x}.

    ``"penalty"`` is the gradient of the penalised value at γ = ``penalty`` from both exact
    responses, first order only; under strict complementarity it differs from ∇φ by O(1/γ):

    .. math:: \nabla F_\gamma(x) = \nabla_x f(x, y_\gamma) + \gamma\,[\nabla_x L_g(x, y_\gamma,
        \mu_\gamma) - \nabla_x L_g(x, y_g, \mu_g)].

    ``"finite-differences"`` are central differences of φ, each from two exact re-solves:

    .. math:: \frac{\varphi(x + h_i e_i) - \varphi(x - h_i e_i)}{2 h_i},
        \qquad h_i = \varepsilon^{1/3} \max(1, |x_i|),

    with ε the rounding unit of x. They step out of the upper domain where x lies on its boundary.

    For small deterministic problems, in float64, whose lower level has a unique solution. Upper
    constraints and the upper domain do not enter.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    x : tree of tensors
        Where; not changed.
    y0 : tree of tensors
        Start of the lower level's solves; not changed.
    method : {"implicit", "penalty", "finite-differences"}
        How.
    penalty : float, optional
        γ, for ``"penalty"`` only.

    Returns
    -------
    tree of tensors
        Like x.

    Raises
    ------
    OptionError
        If the method is unknown, or the penalty is missing or superfluous.
    NotApplicableError
        If x is empty, the objectives take batches, y is too large for exact responses, or (implicit
        only) the response is not differentiable at x.
    InfeasibleError, ResponseError
        If a response does not exist at x, or was not reached.
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r}, expected one of {', '.join(map(repr, METHODS))}")
    if (method == "penalty") != (penalty is not None):
        raise OptionError(
            f"method={method!r} with penalty={penalty!r}: give a penalty for method='penalty', and "
            "only there"
        )
    with at(problem, x, y0, 1.0 if penalty is None else penalty) as state:
        require_upper_variable(state)
        if method == "implicit":
            vector = sum(implicit_terms(problem, state))
        elif penalty is not None:
            vector = penalty_gradient(problem, state, penalty)
        else:
            vector = finite_differences(problem, state)
        return rebuild(x, unflatten(np.asarray(vector), state.upper.leaves))


def implicit_terms(problem: BilevelProblem, state: State) -> tuple[Array, Array]:
    """The two terms of ∇φ: ∇ₓf and Dᵀ∇_y f."""
    evaluation = Evaluation(problem, state)
    track = respond(problem, state, exact_response(state.lower), 0.0, evaluation)
    f = evaluation.upper(through_x=True)
    slope = gradient(f, state.upper.leaves + state.lower.leaves)
    moved = response_jacobian(problem, state, track, evaluation)
    n = state.upper.size
    return slope[:n], moved.T @ slope[n:]


def penalty_gradient(problem: BilevelProblem, state: State, penalty: float) -> Array:
    """∇F_γ, by the problem's own exact response where it has one."""
    evaluation, response = Evaluation(problem, state), state.response
    state.perturbed = respond(problem, state, response, 1.0 / penalty, evaluation)
    kept, omitted = gradient_parts(problem, state, penalty, response)
    return kept + omitted


def finite_differences(problem: BilevelProblem, state: State) -> Array:
    """Central differences of φ."""
    response = exact_response(state.lower)
    track = respond(problem, state, response, 0.0, Evaluation(problem, state))
    start = state.lower.values()
    x = state.upper.vector()

    def hyper_objective(point: Array) -> float:
        state.upper.assign_vector(point)
        state.lower.assign(start)
        evaluation = Evaluation(problem, state)
        respond(problem, state, response, 0.0, evaluation, track)
        return float(evaluation.upper().detach())

    precision = max(torch.finfo(leaf.dtype).eps for leaf in state.upper.leaves)
    steps = precision ** (1 / 3) * np.maximum(1.0, np.abs(x))
    slope = np.zeros_like(x)
    for i, step in enumerate(steps):
        ahead, behind = x.copy(), x.copy()
        ahead[i] += step
        behind[i] -= step
        slope[i] = (hyper_objective(ahead) - hyper_objective(behind)) / (ahead[i] - behind[i])
    state.upper.assign_vector(x)
    state.lower.assign(start)
    return slope
