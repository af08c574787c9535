"""PBGD-Free: value-function-free, fully single-loop."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bilevel import checkpoints
from bilevel.diagnostics.bias import measure_bias
from bilevel.errors import BiasWarning, NotApplicableError, OptionError
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward
from bilevel.options import check_count, check_positive
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.responses.exact import EXACT_LIMIT, Exact
from bilevel.schedules import penalty_at
from bilevel.solution import Solution, Status
from bilevel.solvers.base import PenaltySolver
from bilevel.state import State
from bilevel.trees import Tree


@dataclass(frozen=True, kw_only=True, repr=False)
class PBGDFree(PenaltySolver):
    r"""Value-function-free penalty-based bilevel gradient descent.

    Each step tracks the perturbed response with ``inner_steps`` gradient steps and then descends
    the upper objective's partial gradient:

    .. math::
        y &\leftarrow \Pi_Y\bigl(y - \eta_y
            [\tfrac1\gamma \nabla_y f(x, y) + \nabla_y g(x, y)]\bigr) \\
        x &\leftarrow \Pi_X\bigl(x - \eta_x \nabla_x f(x, y)\bigr)

    Cheap: with ``inner_steps=1`` one lower and one upper gradient a step, and no second copy of y.
    Biased by :math:`\gamma\|\nabla_x g(x, y_\gamma) - \nabla_x g(x, y_g)\|` unless f is flat in y
    near the lower solution: ``bias_every`` measures it along the run, and ``polish`` removes it.
    Not applicable where f does not depend on x directly.

    Parameters
    ----------
    penalty : float or schedule, optional
        γ > 0: a number, one of :mod:`bilevel.schedules`, or a callable step -> penalty.
    upper_lr, lower_lr : float, optional
        η_x and η_y, for plain gradient descent.
    inner_steps : int, optional
        K, steps on the response in one outer step.
    upper_optimizer, lower_optimizer : callable, optional
        Leaves -> ``torch.optim`` optimiser, in the place of a step size; for instance
        ``functools.partial(torch.optim.AdamW, lr=1e-4)``.
    bias_every : int, optional
        Measure the bias every so many steps (one extra solve of the lower level each time) and
        warn when it outweighs the direction that the method follows.
    polish : PenaltySolver, optional
        A solver with the full gradient, usually :class:`~bilevel.PBGD`, that takes over where this
        method ends: at ``polish_below``, or after ``max_steps``, which holds for each of the two.
    polish_below : float
        Residual at which ``polish`` takes over.
    **options
        The others (response, schedulers, clipping, accumulation, autocast) are those of
        :class:`~bilevel.solvers.base.PenaltySolver`.

    Source: Jiang et al. 2025, arXiv:2507.20400, Algorithm 1; constrained lower levels
    arXiv:2511.16796.
    """

    bias_every: int | None = None
    polish: PenaltySolver | None = None
    polish_below: float = 1e-2
    tracks_original = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias_every is not None:
            check_count("bias_every", self.bias_every)
        if self.polish is not None and not (
            isinstance(self.polish, PenaltySolver) and self.polish.tracks_original
        ):
            raise OptionError(
                f"polish={self.polish!r}, expected a solver with the full gradient: PBGD(...) or "
                "BLOCC(...)"
            )
        check_positive("polish_below", self.polish_below)

    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Accumulate ∇ₓf(x, y_γ) at x's leaves."""
        with state.lower.frozen():
            for evaluation in evaluations:
                f = evaluation.upper(through_x=True)
                if f.requires_grad:
                    backward(f / len(evaluations), state.upper, state, "upper (f)")
        if not state.upper.gradients():
            raise NotApplicableError(
                "PBGDFree descends the partial gradient of f in x, and f does not depend on x "
                "directly here, so that gradient is identically zero and x would never move. Use "
                "PBGD (no lower-level constraints) or BLOCC, whose direction also goes through the "
                "lower level"
            )

    def measure(
        self, problem: BilevelProblem, state: State, batches: tuple[Any, Any]
    ) -> dict[str, float]:
        """The bias, every ``bias_every`` steps."""
        if self.bias_every is None or (state.step - 1) % self.bias_every:
            return {}
        if state.step == 1 and self.bias_every > 1 and not state.response.exact:
            return {}  # y has only begun to follow its response
        penalty = penalty_at(state.schedule, state.step - 1)
        bias = measure_bias(problem, state, penalty, _original_response(problem, state), batches)
        if bias.ratio > 1.0:
            warnings.warn(
                f"at step {state.step} the omitted term has norm {bias.omitted:.3g}, the direction "
                f"{bias.direction:.3g}: the answer will be biased; finish with polish=PBGD(...)",
                BiasWarning,
                stacklevel=2,
            )
        return {"bias": bias.omitted, "bias_ratio": bias.ratio}

    def _run(self, problem: BilevelProblem, x: Tree, y: Tree, options: dict[str, Any]) -> Solution:
        if self.polish is None:
            return super()._run(problem, x, y, options)
        resume = options["resume"]
        if resume is not None and checkpoints.load(Path(resume))["solver"] != type(self).__name__:
            return self.polish._run(problem, x, y, options)
        tolerance = max(options["tolerance"], self.polish_below)
        first = super()._run(problem, x, y, {**options, "tolerance": tolerance})
        if first.status is Status.STOPPED:
            return first
        second = self.polish._run(problem, first.x, first.y, {**options, "resume": None})
        return replace(
            second,
            steps=first.steps + second.steps,
            seconds=first.seconds + second.seconds,
            gradient_evaluations=first.gradient_evaluations + second.gradient_evaluations,
            history=_joined(first, second),
            parts={**second.parts, "solver": f"PBGDFree, then {type(self.polish).__name__}"},
            notes=[
                *second.notes,
                f"PBGDFree took {first.steps} steps to f = {first.upper_value:.6g}",
            ],
        )


def _original_response(problem: BilevelProblem, state: State) -> Response:
    """The most exact response at hand for the diagnostic's one original response."""
    if problem.lower_response is not None or state.response.exact:
        return problem.lower_response or state.response
    if not problem.uses_batches and state.lower.size <= EXACT_LIMIT:
        return Exact()
    return state.response


def _joined(first: Solution, second: Solution) -> pd.DataFrame:
    """Both histories in one table, the second's counters going on from the first's."""
    later = second.history.assign(phase="polish")
    for name, offset in (
        ("step", first.steps),
        ("seconds", first.seconds),
        ("gradient_evaluations", first.gradient_evaluations),
    ):
        later[name] = later[name] + offset
    return pd.concat([first.history.assign(phase="value-function-free"), later], ignore_index=True)
