"""What the penalty solvers share: their options, and the step respond -> direction -> move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel.callbacks import Callback, Checkpoint, Record, as_callback
from bilevel.dependence import require_dependence, require_dependence_seen
from bilevel.errors import NotApplicableError, OptionError, ProblemError, VariableError
from bilevel.evaluation import Evaluation, accumulate
from bilevel.failures import accounted
from bilevel.optimizers import OptimizerFactory, SchedulerFactory
from bilevel.options import check_count, check_optional_positive, described
from bilevel.outer.base import Outer
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.schedules import Schedule, as_schedule, penalty_at
from bilevel.solution import Solution
from bilevel.solvers.choice import choose
from bilevel.solvers.loop import Run, run_solver
from bilevel.solvers.parts import check_parts
from bilevel.solvers.restarts import best_of
from bilevel.state import State, Track
from bilevel.trees import Tree
from bilevel.variables import Level


@dataclass(frozen=True, kw_only=True, repr=False)
class PenaltySolver(ABC):
    """A penalty method: responses at x, an outer direction from them, an outer step.

    Parameters
    ----------
    penalty : float or schedule, optional
        γ > 0: a number, one of :mod:`bilevel.schedules`, or a callable step -> penalty.
    upper_lr, lower_lr : float, optional
        Step sizes of plain gradient descent at the two levels.
    inner_steps : int, optional
        K, first-order steps on a response in each outer step.
    upper_optimizer, lower_optimizer : callable, optional
        Leaves -> ``torch.optim`` optimiser, in the place of a step size; for instance
        ``functools.partial(torch.optim.AdamW, lr=1e-4)``.
    upper_scheduler, lower_scheduler : callable, optional
        Optimiser -> ``torch.optim.lr_scheduler``; steps once an outer step.
    response : Response, optional
        How the lower level is solved. Chosen by the problem's form where not given.
    outer : Outer, optional
        How x is moved. Chosen by the problem's form where not given.
    clip_norm : float, optional
        Bound on the gradient's norm at each level, in steps of gradient descent.
    accumulate : int
        Micro-batches a step: all of them for the lower level, then all of them for the upper; for
        first-order outer steps.
    autocast : torch.dtype, optional
        ``torch.bfloat16``: evaluate the objectives under ``torch.autocast``; for first-order
        responses.
    """

    penalty: float | Schedule | None = None
    upper_lr: float | None = None
    lower_lr: float | None = None
    inner_steps: int | None = None
    upper_optimizer: OptimizerFactory | None = None
    lower_optimizer: OptimizerFactory | None = None
    upper_scheduler: SchedulerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None
    response: Response | None = None
    outer: Outer | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("upper_lr", "lower_lr", "clip_norm"):
            check_optional_positive(name, getattr(self, name))
        if self.penalty is not None:
            as_schedule(self.penalty)
        check_count("accumulate", self.accumulate)
        if self.inner_steps is not None:
            check_count("inner_steps", self.inner_steps)
        if self.autocast not in (None, torch.bfloat16):
            raise OptionError(
                f"autocast={self.autocast!r}, expected torch.bfloat16 (gradients of float16 would "
                "underflow without a scaled loss)"
            )
        check_parts(self)

    def __repr__(self) -> str:
        values = [(each, getattr(self, each.name)) for each in fields(self)]
        given = [f"{each.name}={value!r}" for each, value in values if value != each.default]
        return f"{type(self).__name__}({', '.join(given)})"

    # What a method defines ----------------------------------------------------------------------

    #: Whether the method follows the original response y_g beside the perturbed one.
    tracks_original: ClassVar[bool] = True

    @property
    def moves_y_with_x(self) -> bool:
        """Whether y takes its step together with x, and so needs one."""
        return False

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem of a form that the method cannot solve; none, unless it says so."""
        return None

    @abstractmethod
    def outer_gradient(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Accumulate the outer direction as the gradient at x's leaves."""

    def penalty_of(self, state: State, step: int) -> float | Tensor:
        """The penalty of a step: the schedule's, or what the method found in the last one."""
        return penalty_at(state.schedule, step)

    def residual_weights(self, penalty: float) -> dict[str, float]:
        """How much the responses' residuals count beside the outer direction's."""
        weight = penalty if self.tracks_original else 1.0
        return {"lower_residual": weight, "original_residual": weight}

    # Own training loops -------------------------------------------------------------------------

    def init(self, problem: BilevelProblem, x: Tree, y: Tree) -> State:
        """Validate the start and prepare a state for :meth:`step`.

        Raises
        ------
        VariableError, DomainError
            If x or y is not a tree of finite tensors inside its domain.
        NotApplicableError, OptionError
            If the method, or an option it needs, does not fit the problem.
        """
        if not isinstance(problem, BilevelProblem):
            raise ProblemError(
                f"the problem is {described(problem)}, expected a BilevelProblem(upper=, lower=)"
            )
        if not torch.is_grad_enabled():
            raise OptionError(
                "gradients are switched off here: call solve() and step() outside of "
                "torch.no_grad() and torch.inference_mode()"
            )
        self.check(problem)
        upper = Level("x", x, problem.upper_domain)
        lower = Level("y", y, problem.lower_domain)
        _require_distinct(upper, lower)
        if self.moves_y_with_x and not upper.leaves:
            raise NotApplicableError(
                "x is empty, and here y moves together with x: use PBGDFree, or "
                "PBGD(variant='alternating')"
            )
        response, outer, schedule = choose(self, problem, upper, lower)
        state = State(upper, lower, response, outer, schedule)
        if response.exact or outer.needs_exact_response:
            _work_in_double_precision(problem, state)
        if response.exact and not problem.uses_batches:
            require_dependence(problem, state)
        response.start(problem, state, state.perturbed)
        if self.tracks_original:
            state.original = Track(values=lower.values())
            response.start(problem, state, state.original)
        outer.start(problem, state)
        return state

    def step(
        self,
        problem: BilevelProblem,
        state: State,
        upper_batch: Any = None,
        lower_batch: Any = None,
    ) -> State:
        """One outer step, in place; returns the same state."""
        penalty = penalty_at(state.schedule, state.step)
        graph_of: tuple[str, ...] = ("upper", "lower") if self.tracks_original else ("upper",)
        if self.accumulate > 1:  # to hold the graphs of all micro-batches would defeat its purpose
            graph_of = ()
        evaluations = accumulate(
            (upper_batch, lower_batch),
            self.accumulate,
            lambda upper, lower: Evaluation(
                problem, state, upper, lower, self.autocast, graph_of=graph_of
            ),
        )
        with accounted(problem, state, evaluations):
            state.outer.advance(self, problem, state, penalty, evaluations)
        if state.step == 0 and (problem.uses_batches or not state.response.exact):
            require_dependence_seen(evaluations)
        state.record["penalty"] = self.penalty_of(state, state.step)
        state.step += 1
        return state

    def respond(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Update the tracked responses at the current x."""
        state.response.update(problem, state, state.perturbed, 1.0 / penalty, evaluations)
        if state.original is not None:
            with state.at_original() as track:
                state.response.update(problem, state, track, 0.0, evaluations)

    def solve(
        self,
        problem: BilevelProblem,
        x0: Tree,
        y0: Tree,
        *,
        max_steps: int = 1000,
        tolerance: float = 1e-6,
        upper_batches: Iterable[Any] | None = None,
        lower_batches: Iterable[Any] | None = None,
        restarts: int = 0,
        seed: int = 0,
        callbacks: Sequence[Callback | Callable[[Record, State], Any]] = (),
        progress: bool | None = None,
        log_every: int | None = None,
        resume: str | Path | None = None,
    ) -> Solution:
        """Solve a problem from a start.

        Parameters
        ----------
        problem : BilevelProblem
            What is to be solved.
        x0, y0 : tree of tensors
            The start. Plain tensors are never changed; ``nn.Parameter`` leaves train in place.
        max_steps : int
            Bound on the outer steps.
        tolerance : float
            Bound on the residuals at which a run has converged: the projected outer gradient and,
            for first-order responses, the residuals of their optimality conditions (the projected
            gradient, the constraints, the multipliers), times γ where the direction holds γ times
            the difference of two responses. The residual that is measured afresh at the end has to
            confirm it: it may be at most tolerance · (1 + the size of the terms that cancel in it),
            see :class:`~bilevel.Solution`.
        upper_batches, lower_batches : iterable, optional
            Loaders for objectives that take a batch; gone through again and again.
        restarts : int
            Further seeded random starts, none of which can be resumed; the best verified feasible
            answer is kept. A run that
            meets an earlier one's path ends there. Under a growing penalty all may: the problem of
            its first value can have a single solution where later ones have several. A constant
            penalty, such as ``penalty=1e4``, keeps the starts apart.
        seed : int
            Seed of the random starts.
        callbacks : sequence
            Callbacks, or functions of (record, state) that stop the run by returning true.
        progress : bool, optional
            Show a progress bar; by default in a terminal only.
        log_every : int, optional
            Steps between records; by default such that a run logs about a thousand.
        resume : path, optional
            A checkpoint written by :class:`~bilevel.callbacks.Checkpoint`; the run goes on from
            there, bit for bit as if it had not been interrupted.

        Returns
        -------
        Solution
            The answer with its residuals, recomputed at the end.

        Raises
        ------
        BilevelError
            One of :mod:`bilevel.errors`, naming what is wrong and what to try.
        """
        _check_solve_options(max_steps, tolerance, restarts, seed, log_every, resume)
        if not isinstance(callbacks, Sequence):
            raise OptionError(f"callbacks={callbacks!r}, expected a list: callbacks=[...]")
        options: dict[str, Any] = {
            "max_steps": max_steps,
            "tolerance": tolerance,
            "upper_batches": upper_batches,
            "lower_batches": lower_batches,
            # Checkpoints come last: they hold what the others made of the step.
            "callbacks": sorted(
                map(as_callback, callbacks), key=lambda each: isinstance(each, Checkpoint)
            ),
            "progress": progress,
            "log_every": log_every or max(1, max_steps // 1000),
            "resume": resume,
        }
        if not restarts:
            return self._run(problem, x0, y0, options)

        def run(x: Tree, y: Tree, watch: Callback) -> Solution:
            watched = {**options, "callbacks": [*options["callbacks"], watch]}
            return self._run(problem, x, y, watched)

        return best_of(run, problem, x0, y0, restarts, seed)

    def _run(self, problem: BilevelProblem, x: Tree, y: Tree, options: dict[str, Any]) -> Solution:
        return run_solver(self, problem, x, y, **options)

    def measure(self, run: Run) -> dict[str, float]:
        """Further quantities for the history, at a logged step."""
        return {}


def _work_in_double_precision(problem: BilevelProblem, state: State) -> None:
    changed = [state.upper.to_double(), state.lower.to_double()]
    if problem.uses_batches or not any(changed):
        return
    try:
        Evaluation(problem, state).pair()
    except RuntimeError as error:
        if "dtype" not in str(error) and "scalar type" not in str(error):
            raise
        raise VariableError(
            "exact responses need double precision, and the objectives do not take x and y in it "
            f"({error}). Pass x0.double(), y0.double() and the tensors that the objectives use in "
            "double, or use first-order steps (upper_lr=..., lower_lr=...)"
        ) from error


def _require_distinct(upper: Level, lower: Level) -> None:
    """Refuse a parameter that both levels would move."""
    held = {id(leaf): name for leaf, name in zip(upper.leaves, upper.names, strict=True)}
    for leaf, name in zip(lower.leaves, lower.names, strict=True):
        if id(leaf) in held:
            raise VariableError(
                f"{held[id(leaf)]} and {name} are the same parameter: give it to one level only"
            )


def _check_solve_options(
    max_steps: int,
    tolerance: float,
    restarts: int,
    seed: int,
    log_every: int | None,
    resume: str | Path | None,
) -> None:
    check_count("max_steps", max_steps)
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise OptionError(f"tolerance={tolerance!r}, expected a number >= 0 (0: never converged)")
    check_count("restarts", restarts, least=0)
    check_count("seed", seed, least=0)
    if log_every is not None:
        check_count("log_every", log_every)
    if not isinstance(resume, str | Path | None):
        raise OptionError(f"resume={resume!r}, expected the path of a checkpoint")
    if restarts and resume is not None:
        raise OptionError(
            f"resume= goes on with one run, and restarts={restarts} asks for several: leave one out"
        )
