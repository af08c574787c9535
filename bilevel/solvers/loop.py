"""The loop of ``solve``, written once for all solvers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from bilevel import checkpoints
from bilevel.batches import BatchStream
from bilevel.callbacks import Callback, Record
from bilevel.distributed import gather, mean_values
from bilevel.errors import CheckpointError, DivergenceError, NonFiniteError
from bilevel.problem import BilevelProblem
from bilevel.progress import ProgressBar
from bilevel.random_state import get_random_state, set_random_state
from bilevel.schedules import settled
from bilevel.solution import Solution, Status
from bilevel.state import State
from bilevel.variables import global_norm
from bilevel.verification import Residuals, constraint_violation, verify

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

#: A violation above this makes a final point infeasible, whatever else it is.
FEASIBILITY = 1e-4
#: Growth of the variables' norm, relative to the start, that counts as divergence.
_RUNAWAY = 1e12


@dataclass
class Run:
    """A run in progress, as callbacks and checkpoints see it.

    ``earlier`` is what a solver of several phases keeps of those before this run.
    """

    solver: PenaltySolver
    problem: BilevelProblem
    state: State
    streams: dict[str, BatchStream]
    callbacks: Sequence[Callback] = ()
    earlier: dict[str, Any] | None = None
    records: list[Record] = field(default_factory=list)
    elapsed: float = 0.0
    failed: bool = False
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier parts of a resumed run included."""
        return self.elapsed + time.perf_counter() - self.began

    @property
    def batches(self) -> tuple[Any, Any]:
        """The last step's batches, of accumulated micro-batches the last ones."""
        upper, lower = (self.streams.get(f"{level}_batches") for level in ("upper", "lower"))
        return upper and upper.last, lower and lower.last

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table."""
        return pd.DataFrame(self.records)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        content = {
            "solver": type(self.solver).__name__,
            "state": self.state.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "callbacks": self._held(),
            "earlier": self.earlier,
            "records": self.records,
            "elapsed": self.seconds,
            "random": get_random_state(),
        }
        checkpoints.save(path, content)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = checkpoints.load(path)
        try:
            self._take(saved)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is of another kind of run, or damaged: {error!r}"
            ) from error

    def _held(self) -> dict[str, list[dict[str, Any]]]:
        """By class, for callbacks that keep something: several of one class by their order."""
        held: dict[str, list[dict[str, Any]]] = {}
        for each in self.callbacks:
            if state := each.state_dict():
                held.setdefault(type(each).__name__, []).append(state)
        return held

    def _take(self, saved: dict[str, Any]) -> None:
        if saved["solver"] != type(self.solver).__name__:
            raise CheckpointError(
                f"written by {saved['solver']}, and this is {type(self.solver).__name__}"
            )
        if set(saved["streams"]) != set(self.streams):
            raise CheckpointError(
                f"it holds the positions of {sorted(saved['streams']) or 'no batches'}, and "
                f"solve() was given {sorted(self.streams) or 'none'}"
            )
        held = {name: iter(states) for name, states in saved["callbacks"].items()}
        for callback in self.callbacks:
            state = next(held.get(type(callback).__name__, iter(())), None)
            if state is not None:
                callback.load_state_dict(state)
        for name, stream in self.streams.items():
            stream.load_state_dict(saved["streams"][name])
        self.earlier, self.records = saved["earlier"], saved["records"]
        self.elapsed, random = saved["elapsed"], saved["random"]
        self.state.load_state_dict(saved["state"])  # parameters would not come back
        set_random_state(random)


def run_solver(
    solver: PenaltySolver,
    problem: BilevelProblem,
    x0: Any,
    y0: Any,
    *,
    max_steps: int,
    tolerance: float,
    upper_batches: Iterable[Any] | None,
    lower_batches: Iterable[Any] | None,
    callbacks: Sequence[Callback],
    progress: bool | None,
    log_every: int,
    resume: str | Path | None,
    earlier: dict[str, Any] | None = None,
) -> Solution:
    """One run from one start."""
    state = solver.init(problem, x0, y0)
    loaders = {"upper_batches": upper_batches, "lower_batches": lower_batches}
    streams = {name: BatchStream(it, name) for name, it in loaders.items() if it is not None}
    run = Run(solver, problem, state, streams, callbacks, earlier)
    if resume is not None:
        run.restore(Path(resume))
    bar = ProgressBar(max_steps, state.step, progress)
    try:
        for callback in callbacks:
            callback.on_start(run)
        status = _iterate(run, max_steps, tolerance, callbacks, log_every, bar)
    except BaseException as error:
        run.failed = True
        if isinstance(error, NonFiniteError):
            error.history = run.history
        raise
    finally:
        bar.close()
        state.upper.clear_gradients()
        state.lower.clear_gradients()
        for callback in callbacks:
            callback.on_end(run)
    return _conclude(run, status, tolerance)


def _iterate(
    run: Run,
    max_steps: int,
    tolerance: float,
    callbacks: Sequence[Callback],
    log_every: int,
    bar: ProgressBar,
) -> Status:
    state = run.state
    start_norm = 1.0 + _size(state)
    if _converged(run, tolerance):  # a finished run, resumed
        return Status.CONVERGED
    while state.step < max_steps and not state.finished:
        state.measuring = state.step % log_every == 0 or state.step == max_steps - 1
        count = run.solver.accumulate
        drawn = [
            run.streams[name].next(count) if name in run.streams else None
            for name in ("upper_batches", "lower_batches")
        ]
        run.solver.step(run.problem, state, *drawn)
        bar.advance()
        for callback in callbacks:
            callback.on_step(run)
        if not (state.measuring or state.finished):
            continue
        record = _record(run)
        run.records.append(record)
        bar.show(record)
        if not _size(state) < _RUNAWAY * start_norm:
            raise DivergenceError(
                f"the variables grew beyond {_RUNAWAY:g} times their start by step {state.step}: "
                "lower the learning rates or the penalty, or bound the variables by domains",
                state,
                run.history,
            )
        stops = [callback.on_log(run, record) for callback in callbacks]
        if any(gather(any(stops))):  # one process's reason stops them all
            return Status.STOPPED
        if _converged(run, tolerance):
            return Status.CONVERGED
    return Status.STALLED if state.finished else Status.MAX_STEPS


def _record(run: Run) -> Record:
    state = run.state
    values = {name: float(value) for name, value in state.record.items()}
    if "value" in values:
        values["lower_gap"] = values["lower"] - values.pop("value")
    values = mean_values(values)
    values.update(run.solver.measure(run))
    if "violation" not in values:
        values["violation"] = constraint_violation(run.problem, state)
    return {
        "step": state.step,
        **values,
        "gradient_evaluations": state.gradient_evaluations,
        "seconds": run.seconds,
    }


def _converged(run: Run, tolerance: float) -> bool:
    """Whether the last step was logged, with small residuals at the schedule's last penalty."""
    if not run.records or run.records[-1]["step"] != run.state.step:
        return False
    last_step = run.state.step - 1
    return _small(run.records[-1], run, tolerance) and settled(run.state.schedule, last_step)


def _small(record: Record, run: Run, tolerance: float) -> bool:
    """Whether the residuals are; in the direction of F_γ those of the responses count γ times."""
    weights = {"stationarity": 1.0, "upper_residual": 1.0}
    weights |= run.solver.residual_weights(record["penalty"])
    residuals = [by * record[name] for name, by in weights.items() if name in record]
    return tolerance > 0 and bool(residuals) and max(residuals) <= tolerance


def _size(state: State) -> float:
    with torch.no_grad():
        return float(
            global_norm([leaf.detach() for leaf in state.upper.leaves + state.lower.leaves])
        )


def _conclude(run: Run, status: Status, tolerance: float) -> Solution:
    state = run.state
    penalty = float(run.solver.penalty_of(state, max(state.step - 1, 0)))
    found = verify(run.problem, state, penalty, run.batches)
    for name, value in (("upper (f)", found.upper_value), ("lower (g)", found.lower_value)):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} where the last update, step {state.step - 1}, led to: try a "
                "smaller learning rate, or domains that keep the variables where it is defined. "
                "That point is in the error's .state, the way there in its .history",
                state,
                run.history,
            )
    return Solution(
        x=state.upper.result(),
        y=state.lower.result(),
        y_original=None if found.original is None else state.lower.shaped(found.original),
        upper_value=found.upper_value,
        lower_value=found.lower_value,
        lower_gap=found.lower_gap,
        constraint_violation=found.constraint_violation,
        stationarity=found.stationarity,
        status=_judge(status, found, tolerance),
        steps=state.step,
        history=run.history,
        seconds=run.seconds,
        gradient_evaluations=state.gradient_evaluations,
        parts={"solver": type(run.solver).__name__, **state.parts(), "penalty": f"{penalty:g}"},
        notes=found.notes,
    )


def _judge(status: Status, found: Residuals, tolerance: float) -> Status:
    """The loop's verdict against the residuals that were recomputed."""
    if status is Status.STOPPED:
        return status
    if not found.constraint_violation <= FEASIBILITY:  # NaN is no feasibility
        return Status.INFEASIBLE
    if found.measured is None:
        return status
    small = tolerance > 0 and found.measured.within(tolerance)
    if status is Status.CONVERGED and not small:
        return Status.BIASED
    if status is Status.STALLED and small:
        return Status.CONVERGED
    return status
