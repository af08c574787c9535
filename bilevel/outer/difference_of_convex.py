"""The outer step for jointly convex programs: linearise -γ v and solve the rest exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array, gradient
from bilevel.evaluation import Evaluation
from bilevel.newton import solve
from bilevel.options import check_nonnegative, check_positive, check_share
from bilevel.outer.base import Outer
from bilevel.outer.value_function import ValueFunction
from bilevel.problem import BilevelProblem
from bilevel.program import joint_program, minimising
from bilevel.schedules import settled
from bilevel.state import State
from bilevel.stationarity import Stationarity, resolution
from bilevel.variables import unflatten

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver


@dataclass(frozen=True, kw_only=True)
class DifferenceOfConvex(Outer):
    r"""A proximal difference-of-convex step on the penalised problem.

    Where f, g and the constraints are jointly convex in (x, y), so is v, and the penalised
    objective f + γ(g − v) is a difference of convex functions. With s = ∇v(x_k), one step solves

    .. math:: (x_{k+1}, y_{k+1}) = \operatorname*{arg\,min}_{x \in X,\, y \in Y}\;
        f(x, y) + \gamma\,[g(x, y) - \langle s, x \rangle] + \tfrac{\rho}{2}\|x - x_k\|^2
        \quad\text{s.t. all constraints},

    a convex program, whose objective bounds the penalised one from above: every step descends, with
    no step size, and from far starts it often reaches the global optimum. Solved by the response
    where that knows how, as a problem's own may, otherwise by Newton's method with constraints.

    With extrapolation β, the value function is linearised at, and the proximal term centred on,
    :math:`x_k + \beta (x_k - x_{k-1})`, projected onto X. That is faster where steps are short and
    alike, and no longer descends in each of them; the lower level must be feasible there.

    Parameters
    ----------
    proximal : float
        ρ >= 0.
    extrapolation : float
        0 <= β < 1.
    tolerance : float
        The run is finished once x moves by less than this, relative to its size, and the penalty
        schedule has settled.

    Notes
    -----
    Source: Le Thi and Pham Dinh 2018, Mathematical Programming 169 (the algorithm); Phan, Le and
    Le Thi 2018, IJCAI (extrapolation).
    """

    proximal: float = 0.0
    extrapolation: float = 0.0
    tolerance: float = 1e-8
    needs_exact_response = True
    takes_batches = False
    ends_in_both = True

    def __post_init__(self) -> None:
        check_nonnegative("proximal", self.proximal)
        check_share("extrapolation", self.extrapolation, below_one=True)
        check_positive("tolerance", self.tolerance)

    def advance(
        self,
        solver: PenaltySolver,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Linearise v at the current x and solve the rest."""
        before = state.upper.vector()
        if self.extrapolation > 0:
            previous = state.outer_state.get("previous", state.upper.values())
            state.outer_state["previous"] = state.upper.values()
            self._extrapolate(state, previous)
        slope = ValueFunction(problem, state)().gradient
        state.outer_state["slope"] = torch.from_numpy(slope.copy())
        state.outer_state["centre"] = torch.from_numpy(state.upper.vector())
        response = state.response
        if not response.linearised_step(problem, state, penalty, slope, self.proximal):
            self._solve(problem, state, penalty, slope, evaluations[0])
        moved = float(np.linalg.norm(state.upper.vector() - before))
        state.record["moved"] = moved
        evaluations[0].pair()
        small = moved <= self.tolerance * (1.0 + float(np.linalg.norm(before)))
        state.finished = small and settled(state.schedule, state.step)
        if state.measuring or state.finished:
            state.record["value"] = ValueFunction(problem, state)().value

    def stationarity(
        self, problem: BilevelProblem, state: State, penalty: float, value_gradient: Array
    ) -> Stationarity | None:
        r"""What the last subproblem's optimality leaves of the penalised problem's.

        The two differ in the gradient of v, taken at another point, and in the proximal term:
        :math:`\gamma (s - \nabla v(x)) - \rho (x - c)` with slope s and centre c is the residual
        of the penalised problem's KKT system in (x, y), for the subproblem's multipliers. It rests
        on the subproblem's accuracy, and serves where the system itself is too large.
        """
        if "slope" not in state.outer_state:
            return None
        slope, centre = (state.outer_state[name].cpu().numpy() for name in ("slope", "centre"))
        drift = penalty * (slope - value_gradient)
        pull = self.proximal * (state.upper.vector() - centre)
        f = Evaluation(problem, state, augmented=False).upper(through_x=True)
        kept = gradient(f, state.upper.leaves + state.lower.leaves)
        return Stationarity(
            residual=float(np.linalg.norm(drift - pull)),
            size=2.0 * float(np.linalg.norm(kept)),
            resolution=resolution(penalty, slope, value_gradient),
        )

    @torch.no_grad()
    def _extrapolate(self, state: State, previous: list[Tensor]) -> None:
        for leaf, old in zip(state.upper.leaves, previous, strict=True):
            leaf.add_(leaf - old, alpha=self.extrapolation)
        state.upper.project()

    def _solve(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        slope: Array,
        evaluation: Evaluation,
    ) -> None:
        centres = state.upper.values()
        slopes = unflatten(slope, state.upper.leaves)

        def objective() -> Tensor:
            f, g = evaluation.pair(through_x=True)
            total = f + penalty * g
            for leaf, centre, part in zip(state.upper.leaves, centres, slopes, strict=True):
                total = total - penalty * torch.sum(part * leaf)
                if self.proximal > 0:
                    total = total + 0.5 * self.proximal * torch.sum((leaf - centre) ** 2)
            return total

        program = joint_program(problem, state, objective)
        with minimising("f + γ (g - v) over (x, y), v linearised"):
            answer = solve(program, program.point())
        program.place(answer.z)
        state.gradient_evaluations += answer.iterations
