"""What bilevel solvers are compared with: one objective at a time."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from bilevel.errors import OptionError
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward, require_gradients
from bilevel.options import check_count
from bilevel.problem import BilevelProblem
from bilevel.responses.gradient_descent import step_with_x
from bilevel.solvers.base import PenaltySolver
from bilevel.state import State


@dataclass(frozen=True, kw_only=True, repr=False)
class Scalarised(PenaltySolver):
    r"""Steps on f in x and y, or on g in y alone, drawn anew each time.

    With ``upper_share`` 1/2 this is ALRIGHT, a stochastic scalarisation of the two objectives; with
    1 preference optimisation alone, with 0 supervised fine-tuning of the head alone, and these two
    after one another sequential training. No lower level is solved: x does not know that y answers.

    Parameters
    ----------
    upper_share : float
        Probability of a step on f.
    seed : int
        Of the draws.
    **options
        Learning rates, optimisers, schedulers, clipping, accumulation and autocast of
        :class:`~bilevel.solvers.base.PenaltySolver`.

    Source: ALRIGHT is Fernando et al. 2024, arXiv:2410.15483.
    """

    upper_share: float = 0.5
    seed: int = 0
    tracks_original = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.upper_share <= 1.0:
            raise OptionError(f"upper_share={self.upper_share}, expected a probability")
        check_count("seed", self.seed, least=0)
        if self.penalty is not None:
            raise OptionError("Scalarised has no penalty: leave penalty= out")
        if self.lower_lr is None and self.lower_optimizer is None:
            raise OptionError("Scalarised steps in y: give lower_lr= or lower_optimizer=")

    @property
    def moves_y_with_x(self) -> bool:
        """In steps on f."""
        return True

    def _upper_next(self, state: State) -> bool:
        return bool(np.random.default_rng((self.seed, state.step)).random() < self.upper_share)

    def respond(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Nothing: y takes its step in :meth:`outer_gradient`."""
        if state.step == 0:  # both are looked at once, for whether they depend on x and y
            for evaluation in evaluations:
                evaluation.pair()

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """The step in y along the gradient of what was drawn: of f, which leaves ∇f at x, or g."""
        upper_next = self._upper_next(state)
        level, source = (state.upper, "upper (f)") if upper_next else (state.lower, "lower (g)")
        state.lower.clear_gradients()
        with nullcontext() if upper_next else state.upper.frozen():
            for evaluation in evaluations:
                if upper_next:
                    loss = evaluation.upper(through_x=True)
                    evaluation.record_upper()
                else:
                    loss = evaluation.lower()
                    evaluation.record("lower", loss)
                backward(loss / len(evaluations), level, state, source)
        require_gradients(state.lower, source)
        if state.step > 0:  # what is not computed is not recorded
            state.record.pop("lower" if upper_next else "upper", None)
        step_with_x(state)
