"""The exact response of a small, smooth lower level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array
from bilevel.evaluation import Evaluation
from bilevel.newton import solve
from bilevel.options import check_positive
from bilevel.problem import BilevelProblem
from bilevel.program import LevelProgram, lower_equalities, lower_inequalities, minimising
from bilevel.responses.base import Response
from bilevel.state import State, Track
from bilevel.variables import Level

#: Largest lower level, in entries, that is solved with dense second derivatives unless asked.
EXACT_LIMIT = 1000
#: Rounding units of y that the tightest response allows itself.
_ROUNDING_UNITS = 100.0


@dataclass(frozen=True, kw_only=True)
class Exact(Response):
    r"""Solve the lower level to accuracy, with its multipliers.

    A lower level that is quadratic in y with affine constraints is one quadratic program, its data
    read off by automatic differentiation; a smooth convex one takes a few (Newton's method with
    constraints, SQP); a nonconvex one is solved to a local minimum near the last response.

    Dense second derivatives in y: for up to about a thousand entries.

    Parameters
    ----------
    tolerance : float
        Relative residual of the KKT system.
    elastic : float, optional
        Relax the constraints by an exact :math:`\ell_1` penalty of this weight, so that the
        response exists for every x; it is the true one wherever the multipliers stay below it.
    """

    tolerance: float = 1e-10
    elastic: float | None = None
    exact = True

    def __post_init__(self) -> None:
        check_positive("tolerance", self.tolerance)
        if self.elastic is not None:
            check_positive("elastic", self.elastic)

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Put the response into the lower level's leaves and its multipliers into the track."""

        def objective() -> Tensor:
            losses = []
            for evaluation in evaluations:
                if weight == 0.0:
                    losses.append(evaluation.lower())
                else:
                    f, g = evaluation.pair()
                    losses.append(weight * f + g)
            return torch.stack(losses).mean() if len(losses) > 1 else losses[0]

        level = state.lower
        name = "g" if weight == 0.0 else "f/γ + g"
        with state.upper.frozen(), minimising(f"{name} over the lower level's y"):
            program = LevelProgram(
                (level,),
                objective,
                lambda: lower_inequalities(problem, state),
                lambda: lower_equalities(problem, state),
            )
            answer = solve(
                program,
                level.vector(),
                mu0=_array(track.inequality_multipliers),
                nu0=_array(track.equality_multipliers),
                tolerance=self.tolerance,
                elastic=self.elastic,
            )
        program.place(answer.z)
        state.gradient_evaluations += answer.iterations
        if problem.constrained or len(answer.mu) or len(answer.nu):
            like = level.leaves[0]
            track.inequality_multipliers = torch.from_numpy(answer.mu).to(like.device, like.dtype)
            track.equality_multipliers = torch.from_numpy(answer.nu).to(like.device, like.dtype)


def tightest(level: Level) -> Exact:
    """The exact response that answers are verified with, as tight as y's precision allows."""
    precision = max(torch.finfo(leaf.dtype).eps for leaf in level.leaves)
    return Exact(tolerance=max(1e-12, _ROUNDING_UNITS * precision))


def _array(multipliers: Tensor | None) -> Array | None:
    return None if multipliers is None else np.asarray(multipliers.to("cpu", torch.float64))
