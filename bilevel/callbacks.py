"""Callbacks of ``solve``: what happens beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bilevel.errors import OptionError
from bilevel.extras import require

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run

Record: TypeAlias = dict[str, float]


class Callback:
    """Base of callbacks; override what is needed.

    ``run`` holds the solver, the problem, the state and the records so far.
    """

    def on_start(self, run: Run) -> None:
        """Called once, after a checkpoint was resumed where one was given."""

    def on_step(self, run: Run) -> None:
        """Called after every step; keep it cheap, and do not wait for the device."""

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Called with every logged record; a true value stops the run."""
        return None

    def on_end(self, run: Run) -> None:
        """Called once, also when the run fails."""


class UserFunction(Callback):
    """Wraps a function (record, state) -> stop or not."""

    def __init__(self, function: Callable[[Record, Any], Any]) -> None:
        self.function = function

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Call the function."""
        return bool(self.function(record, run.state))


class EarlyStopping(Callback):
    """Stop when a logged quantity has not improved for a while.

    Parameters
    ----------
    monitor : str
        Column of the history, smaller is better.
    patience : int
        Logged records without improvement that are allowed.
    min_delta : float
        What counts as an improvement.
    """

    def __init__(self, monitor: str = "upper", patience: int = 10, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise OptionError(f"patience={patience!r}, expected an integer >= 1")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self._best = float("inf")
        self._waited = 0

    def on_start(self, run: Run) -> None:
        """Forget earlier runs."""
        self._best, self._waited = float("inf"), 0

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Compare with the best so far."""
        if self.monitor not in record:
            raise OptionError(
                f"EarlyStopping monitors {self.monitor!r}, the history has {', '.join(record)}"
            )
        if record[self.monitor] < self._best - self.min_delta:
            self._best, self._waited = record[self.monitor], 0
        else:
            self._waited += 1
        return self._waited >= self.patience


class TensorBoard(Callback):
    """Write every logged quantity as a TensorBoard scalar (extra ``tensorboard``)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._writer: Any = None

    def on_start(self, run: Run) -> None:
        """Open the writer."""
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory))

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Write the record."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        return None

    def on_end(self, run: Run) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()


class Checkpoint(Callback):
    """Save the run every so many steps and at its end, atomically; ``solve(resume=path)`` goes on.

    Parameters
    ----------
    path : str or Path
        The file; each new checkpoint replaces the last. Under several processes each writes its
        own, with its rank appended.
    every : int
        Steps between checkpoints.
    """

    def __init__(self, path: str | Path, every: int = 1000) -> None:
        if not isinstance(every, int) or every < 1:
            raise OptionError(f"every={every!r}, expected an integer >= 1")
        self.path = Path(path)
        self.every = every

    def on_step(self, run: Run) -> None:
        """Save if it is time."""
        if run.state.step % self.every == 0:
            run.save(self.path)

    def on_end(self, run: Run) -> None:
        """Save the end, unless the run failed: the last good checkpoint then stays."""
        if not run.failed:
            run.save(self.path)


def as_callback(callback: Any) -> Callback:
    """A callback from itself or from a function (record, state) -> stop or not."""
    if isinstance(callback, Callback):
        return callback
    if callable(callback):
        return UserFunction(callback)
    raise OptionError(
        f"a callback is a {type(callback).__name__}, expected a Callback or a function of "
        "(record, state)"
    )
