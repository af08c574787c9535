"""CTC fine-tuning of an encoder, pretrained or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bilevel.distributed import gather
from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.speech.recognition.finetuning_options import FineTuningOptions
from bilevel.problems.speech.recognition.finetuning_run import FineTuningRun
from bilevel.problems.speech.recognition.recogniser import LabelledBatch, Recogniser
from bilevel.progress import ProgressBar


@dataclass(frozen=True)
class FineTuned:
    """What a run of fine-tuning leaves beside the trained recogniser.

    Attributes
    ----------
    history
        One row each time something was logged: ``step``, ``loss`` (nats a symbol, the mean since
        the last row), ``gradient_norm`` (before it was clipped), ``rate`` (of the encoder's steps),
        ``frames`` (of the encoder, so far), ``infeasible`` (utterances so far), ``seconds``.
    infeasible
        By utterance, the encoder frames that its target needs and those that it has: too few, so it
        was left out of the loss.
    """

    history: pd.DataFrame
    infeasible: dict[str, tuple[int, int]]


def finetune(
    recogniser: Recogniser,
    batches: Iterable[LabelledBatch],
    *,
    steps: int,
    options: FineTuningOptions | None = None,
    log_every: int = 50,
    on_log: Callable[[dict[str, float]], Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> FineTuned:
    """Train a recogniser in place, on the device that it is on.

    The loss is the batch's negative log probability of its targets, divided by their number of
    symbols. In a process group every process calls this with its own share of the batches; the
    result is that of one process with all of them.

    Parameters
    ----------
    recogniser
        Its random draws (dropout, augmentation) are PyTorch's global ones: seed them before.
    batches
        Re-iterable: a list, a ``DataLoader``, a loader of its kind.
    steps
        Steps of the whole run.
    options
        Rates, schedule, augmentation, precision.
    log_every
        Steps between rows of the history; the last step is always logged.
    on_log
        Called with each row.
    checkpoint, checkpoint_every
        File to save the run to, every so many steps and at the end.
    resume
        Checkpoint to go on from: the end is bit for bit that of an uninterrupted run.
    progress
        Whether to show a bar; by default in a terminal.

    Raises
    ------
    NonFiniteError
        the loss or its gradient is not finite; the recogniser keeps its last good weights.
    DatasetError
        a transcript has unknown symbols or is missing, or no target fits its frames.
    CheckpointError
        the checkpoint is of another run.
    """
    check_count("steps", steps)
    check_count("log_every", log_every)
    check_count("checkpoint_every", checkpoint_every)
    run = FineTuningRun(recogniser, batches, steps, options or FineTuningOptions())
    if resume is not None:
        run.load(Path(resume))
    bar = ProgressBar(steps, run.step, progress, labels={"loss": "loss", "gradient_norm": "norm"})
    training = recogniser.training
    recogniser.train()
    try:
        while run.step < steps:
            run.advance()
            bar.advance()
            if run.step % log_every == 0 or run.step == steps:
                row = run.log()
                bar.show(row)
                if on_log is not None:
                    on_log(row)
            if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == steps):
                run.save(Path(checkpoint))
    finally:
        bar.close()
        run.thaw()
        recogniser.train(training)
    return _finished(run)


def _finished(run: FineTuningRun) -> FineTuned:
    """The result; names the utterances left out."""
    infeasible = {name: each for part in gather(run.infeasible) for name, each in part.items()}
    if infeasible:
        names = [f"{n} needs {need}, has {has}" for n, (need, has) in infeasible.items()]
        text = (
            f"{len(infeasible)} utterances have fewer encoder frames than their targets need "
            f"({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        )
        if run.symbols == 0:
            raise DatasetError(f"{text}, all of them: nothing was learned")
        warnings.warn(f"{text}: they were left out of the loss", stacklevel=3)
    return FineTuned(pd.DataFrame(run.rows), infeasible)
