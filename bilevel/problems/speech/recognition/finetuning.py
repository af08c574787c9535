"""CTC fine-tuning of an encoder, pretrained or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel.callbacks import Callback, Record
from bilevel.checkpoints import require_same_settings
from bilevel.distributed import averaging, gather
from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problem import BilevelProblem
from bilevel.problems.speech.inputs import SpeechInputs, naming_utterances
from bilevel.problems.speech.recognition.ctc import CTCObjective
from bilevel.problems.speech.recognition.finetuning_options import FineTuningOptions
from bilevel.problems.speech.recognition.recogniser import Recogniser
from bilevel.solution import Solution

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run


def finetune(
    recogniser: Recogniser,
    batches: Iterable[SpeechInputs],
    *,
    steps: int,
    options: FineTuningOptions | None = None,
    callbacks: Sequence[Callback | Callable[[Record, Any], Any]] = (),
    log_every: int | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
) -> Solution:
    """Train a recogniser in place, on the device that it is on.

    The problem has one level: f and x are empty, y are the recogniser's weights and g is
    :class:`CTCObjective`'s. In a process group every process calls this with its own share of the
    batches; without dropout, which each draws for itself, the result is that of one process with
    all of them.

    Parameters
    ----------
    recogniser
        Its dropout draws from PyTorch's global generators: seed them before.
    batches
        Re-iterable: a list, or a loader.
    steps
        Steps of the whole run.
    options
        Rates, schedule, augmentation, precision.
    callbacks, log_every, progress, resume
        Those of :meth:`~bilevel.solvers.base.PenaltySolver.solve`. The history's column ``lower``
        is g of a step; ``lr`` is the rate of the encoder's next step, ``frames`` and
        ``infeasible`` count encoder frames and the utterances left out, so far.

    Returns
    -------
    Solution
        The run's record.

    Raises
    ------
    NonFiniteError
        The loss or its gradient is not finite; the recogniser keeps its last good weights.
    DatasetError
        A transcript has unknown symbols or is missing, or no target fits its frames.
    CheckpointError
        The checkpoint is of another run.
    """
    check_count("steps", steps)
    options = options or FineTuningOptions()
    objective = CTCObjective(recogniser, options.augment)
    model = averaging(objective)
    symbols = list(recogniser.vocabulary.symbols)
    settings = {**asdict(options), "autocast": str(options.autocast), "symbols": symbols}
    monitor = FineTuningMonitor(objective, {**settings, "steps": steps})
    training = recogniser.training
    recogniser.train()
    try:
        with naming_utterances(objective):
            solution = options.solver(recogniser.head, steps).solve(
                BilevelProblem(objectives=lambda x, y, batch: model(batch)),
                (),
                {name: each for name, each in objective.named_parameters() if each.requires_grad},
                max_steps=steps,
                tolerance=0.0,
                lower_batches=batches,
                callbacks=[monitor, *callbacks],
                log_every=log_every,
                progress=progress,
                resume=resume,
            )
    finally:
        recogniser.train(training)
    monitor.require_symbols()
    if infeasible := monitor.infeasible():
        warnings.warn(f"{_listed(infeasible)}: they were left out of the loss", stacklevel=2)
    return solution


class FineTuningMonitor(Callback):
    """Completes the history, and keeps a run from going on with other settings or for nothing.

    Parameters
    ----------
    objective
        What is minimised.
    settings
        What a resumed run must have in common with its checkpoint, by name.
    """

    def __init__(self, objective: CTCObjective, settings: dict[str, Any]) -> None:
        self.objective = objective
        self.settings = settings

    def on_step(self, run: Run) -> None:
        """End a run that has learnt nothing from all its utterances."""
        if run.streams["lower_batches"].epoch > 0:
            self.require_symbols()

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Complete the record."""
        optimizer = run.state.perturbed.optimizer
        assert optimizer is not None
        record["lr"] = optimizer.param_groups[1]["lr"]
        record["frames"] = sum(gather(self.objective.frames))
        record["infeasible"] = len(self.infeasible())
        return None

    def infeasible(self) -> dict[str, list[int]]:
        """All processes' utterances that were left out, see :class:`CTCObjective`."""
        found = gather(self.objective.infeasible)
        return {name: frames for part in found for name, frames in part.items()}

    def require_symbols(self) -> None:
        """Refuse utterances none of which could be learnt from."""
        if self.objective.symbols == 0:
            raise DatasetError(f"{_listed(self.infeasible())}, all of them: nothing was learned")

    def state_dict(self) -> dict[str, Any]:
        """The settings and counters."""
        objective = self.objective
        counters = {name: getattr(objective, name) for name in ("infeasible", "frames", "symbols")}
        return {"settings": self.settings, "counters": counters}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the counters; refuse other settings."""
        require_same_settings(saved["settings"], self.settings)
        for name, value in saved["counters"].items():
            setattr(self.objective, name, value)


def _listed(infeasible: dict[str, list[int]]) -> str:
    named = [f"{name} needs {need}, has {has}" for name, (need, has) in infeasible.items()]
    return (
        f"{len(named)} utterances have fewer encoder frames than their targets need "
        f"({'; '.join(named[:3])}{'; ...' if len(named) > 3 else ''})"
    )
