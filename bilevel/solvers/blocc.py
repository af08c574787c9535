"""BLOCC: the penalty method for lower-level constraints that are coupled with x."""

from __future__ import annotations

from dataclasses import dataclass

from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.solvers.base import PenaltySolver
from bilevel.solvers.direction import penalised_value_gradient
from bilevel.state import State


@dataclass(frozen=True, kw_only=True, repr=False)
class BLOCC(PenaltySolver):
    r"""Primal-dual penalty method for coupled lower-level constraints.

    With the responses and their multipliers

    .. math::
        (y_g, \mu_g) &: \min_{y \in Y} g(x, y) \ \text{ s.t. } c(x, y) \le 0, \\
        (y_\gamma, \mu_\gamma) &: \min_{y \in Y} \tfrac1\gamma f(x, y) + g(x, y)
            \ \text{ s.t. } c(x, y) \le 0,

    each step moves x along the gradient of the penalised value
    :math:`F_\gamma(x) = \min_y f + \gamma (g - v(x))`, which by the envelope theorem is

    .. math::
        \nabla F_\gamma = \nabla_x f(x, y_\gamma)
        + \gamma \bigl[\nabla_x g(x, y_\gamma)
            + \langle \mu_\gamma, \nabla_x c(x, y_\gamma) \rangle\bigr]
        - \gamma \bigl[\nabla_x g(x, y_g) + \langle \mu_g, \nabla_x c(x, y_g) \rangle\bigr].

    Equality constraints h(x, y) = 0 enter in the same way, with free multipliers. First order only;
    needs a lower level that is convex in y, and multipliers that are bounded near the solution.

    With no option given, a small smooth problem is solved by SQP steps on the penalised problem
    with exact responses, the penalty growing from 1 to 1e6.

    Parameters
    ----------
    penalty : float or schedule, optional
        γ > 0: a number, one of :mod:`bilevel.schedules`, or a callable step -> penalty.
    response : Response, optional
        How the lower level is solved: :class:`~bilevel.Exact` on small problems where not given;
        :class:`~bilevel.MaxMin` with ``steps=100`` for the double loop, ``steps=1`` for the single
        loop; :class:`~bilevel.CvxpyResponse`.
    upper_lr : float, optional
        Step size of first-order steps in x, the papers' outer step.
    lower_lr, inner_steps : float and int, optional
        Step size in y and μ, and number of steps of a ``MaxMin`` response.
    outer : Outer, optional
        Another outer step: :class:`~bilevel.SQP`, :class:`~bilevel.QuasiNewton`,
        :class:`~bilevel.DifferenceOfConvex`.
    **options
        The others (optimisers, schedulers, clipping, accumulation, autocast) are those of
        :class:`~bilevel.solvers.base.PenaltySolver`.

    Source: Jiang et al. 2024, arXiv:2406.10148, Algorithms 1 and 2.
    """

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Accumulate ∇F_γ at x's leaves."""
        penalised_value_gradient(problem, state, penalty, evaluations)
