"""BLOCC: the penalty method for lower-level constraints that are coupled with x."""

from __future__ import annotations

from dataclasses import dataclass

from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.solvers.base import PenaltySolver
from bilevel.solvers.direction import penalised_value_gradient
from bilevel.state import State


@dataclass(frozen=True, kw_only=True)
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

    Options are those of :class:`~bilevel.solvers.base.PenaltySolver`. With none given, a small
    smooth problem is solved by SQP steps on the penalised problem with exact responses, the penalty
    growing from 1 to 1e6. A double loop is ``response=MaxMin(steps=100)``, the single loop
    ``response=MaxMin(steps=1)``, each with ``upper_lr``.

    Source: Jiang et al. 2024, arXiv:2406.10148, Algorithms 1 and 2.
    """

    def check(self, problem: BilevelProblem) -> None:
        """BLOCC takes every form of problem."""

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Accumulate ∇F_γ at x's leaves."""
        penalised_value_gradient(problem, state, penalty, evaluations)
