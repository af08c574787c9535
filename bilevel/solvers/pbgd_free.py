"""PBGD-Free: value-function-free, fully single-loop."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bilevel import checkpoints
from bilevel.bias import Bias, measure_bias
from bilevel.errors import (
    BiasWarning,
    CheckpointError,
    InfeasibleError,
    NonFiniteError,
    NotApplicableError,
    OptionError,
    ResponseError,
    VariableError,
)
from bilevel.evaluation import Evaluation
from bilevel.gradients import backward
from bilevel.options import check_count, check_positive
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response, fresh_track
from bilevel.responses.exact import EXACT_LIMIT, Exact
from bilevel.schedules import penalty_at
from bilevel.solution import Solution, Status
from bilevel.solvers.base import PenaltySolver
from bilevel.solvers.loop import Run
from bilevel.state import State
from bilevel.trees import Tree
from bilevel.verification import restoring


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
        Measure the bias at the first logged step of every so many (one extra solve of the lower
        level each time, or two) and warn, once a run, when it outweighs the direction that the
        method follows and no ``polish`` is to remove it. Where y_γ is followed by first-order
        steps, their lag counts as bias. An empty x has none.
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

    def init(self, problem: BilevelProblem, x: Tree, y: Tree) -> State:
        """As :meth:`PenaltySolver.init`; also refuses a ``polish`` that could not take over."""
        state = super().init(problem, x, y)
        if self.polish is not None:
            try:
                self.polish.init(problem, x, y)
            except (NotApplicableError, OptionError, VariableError) as error:
                name = type(self.polish).__name__
                raise type(error)(f"polish={name}(...) cannot take over: {error}") from error
        return state

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

    def measure(self, run: Run) -> dict[str, float]:
        """The bias, every ``bias_every`` steps."""
        state, every = run.state, self.bias_every
        if every is None or not state.upper.leaves:
            return {}
        last = run.records[-1]["step"] if run.records else 0
        if (state.step - 1) // every == (last - 1) // every:
            return {}
        if state.step == 1 and every > 1 and not state.response.exact:
            return {}  # y has only begun to follow its response
        try:
            bias = _bias_after_step(run)
        except (InfeasibleError, NonFiniteError, NotApplicableError, ResponseError) as error:
            if state.upper.wrapped or state.lower.wrapped:
                raise
            self._warn_once(run, f"the bias is not known at step {state.step}: {error}")
            return {"bias": math.nan, "bias_ratio": math.nan}
        if bias.ratio > 1.0 and self.polish is None:
            self._warn_once(
                run,
                f"at step {state.step} the omitted term has norm {bias.omitted:.3g}, the direction "
                f"{bias.direction:.3g}: the answer will be biased; finish with polish=PBGD(...), "
                "and see bias_ratio in the history for later steps",
            )
        return {"bias": bias.omitted, "bias_ratio": bias.ratio}

    @staticmethod
    def _warn_once(run: Run, message: str) -> None:
        ratios = [record["bias_ratio"] for record in run.records if "bias_ratio" in record]
        if all(ratio <= 1.0 for ratio in ratios):
            warnings.warn(message, BiasWarning, stacklevel=_callers_level())

    def _run(self, problem: BilevelProblem, x: Tree, y: Tree, options: dict[str, Any]) -> Solution:
        if self.polish is None:
            return super()._run(problem, x, y, options)
        resume = options["resume"]
        saved = None if resume is None else checkpoints.load(Path(resume))
        if saved is None or saved["solver"] == type(self).__name__:
            tolerance = max(options["tolerance"], self.polish_below)
            first = super()._run(problem, x, y, {**options, "tolerance": tolerance})
            if first.status is Status.STOPPED:
                return first
            x, y, resume, earlier = first.x, first.y, None, _summary(first)
        elif saved["earlier"] is not None:
            earlier = saved["earlier"]
        else:
            raise CheckpointError(
                f"{resume} was written by {saved['solver']} alone, and this is PBGDFree with "
                "polish=: resume with the solver that began the run"
            )
        options = {**options, "resume": resume, "earlier": earlier}
        return _joined(earlier, self.polish._run(problem, x, y, options), self.polish)


def _bias_after_step(run: Run) -> Bias:
    """The bias at the new x; y_γ, where it is solved for exactly, follows for the moment."""
    problem, state = run.problem, run.state
    penalty = penalty_at(state.schedule, state.step - 1)
    response = _original_response(problem, state)
    if not state.response.exact:
        return measure_bias(problem, state, penalty, response, run.batches)
    held, count = state.perturbed, state.gradient_evaluations
    with restoring(state.lower):
        try:
            state.perturbed = fresh_track(state.response, problem, state)
            evaluation = Evaluation(problem, state, *run.batches)
            state.response.update(problem, state, state.perturbed, 1.0 / penalty, [evaluation])
            return measure_bias(problem, state, penalty, response, run.batches)
        finally:
            state.perturbed, state.gradient_evaluations = held, count


def _original_response(problem: BilevelProblem, state: State) -> Response:
    """The most exact response at hand for the diagnostic's one original response."""
    if problem.lower_response is not None or state.response.exact:
        return problem.lower_response or state.response
    if not problem.uses_batches and state.lower.size <= EXACT_LIMIT:
        return Exact()
    return state.response


def _callers_level() -> int:
    """The ``stacklevel`` at which the function that calls this one warns the library's user."""
    library = __name__.partition(".")[0]
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == library:
        level, frame = level + 1, frame.f_back
    return level


def _summary(first: Solution) -> dict[str, Any]:
    """What the first phase leaves for the record, as numbers that a checkpoint can hold."""
    return {
        "steps": first.steps,
        "seconds": first.seconds,
        "gradient_evaluations": first.gradient_evaluations,
        "upper_value": first.upper_value,
        "records": first.history.to_dict("records"),
    }


def _joined(first: dict[str, Any], second: Solution, polish: PenaltySolver) -> Solution:
    """The second phase's solution with both histories, its counters going on from the first's."""
    later = second.history.assign(phase="polish")
    for name in ("steps", "seconds", "gradient_evaluations"):
        column = "step" if name == "steps" else name
        later[column] = later[column] + first[name]
    before = pd.DataFrame(first["records"]).assign(phase="value-function-free")
    note = f"PBGDFree took {first['steps']} steps to f = {first['upper_value']:.6g}"
    return replace(
        second,
        steps=first["steps"] + second.steps,
        seconds=first["seconds"] + second.seconds,
        gradient_evaluations=first["gradient_evaluations"] + second.gradient_evaluations,
        history=pd.concat([before, later], ignore_index=True),
        parts={**second.parts, "solver": f"PBGDFree, then {type(polish).__name__}"},
        notes=[*second.notes, note],
    )
