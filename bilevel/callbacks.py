"""Callbacks of ``solve``: what happens beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bilevel.checkpoints import require_same_settings
from bilevel.distributed import rank
from bilevel.errors import OptionError
from bilevel.extras import require
from bilevel.options import accepts, check_count, check_nonnegative

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

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this callback, as tensors, numbers, lists and dicts."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave, before :meth:`on_start` of the resumed run."""


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
        Column of the history.
    patience : int
        Logged records without improvement that are allowed.
    min_delta : float
        What counts as an improvement.
    mode : {"min", "max"}
        Whether smaller or larger is better.
    """

    def __init__(
        self,
        monitor: str = "upper",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "min",
    ) -> None:
        check_count("patience", patience)
        check_nonnegative("min_delta", min_delta)
        if mode not in ("min", "max"):
            raise OptionError(f"mode={mode!r}, expected 'min' or 'max'")
        self._sign = 1.0 if mode == "min" else -1.0
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self._best = float("inf")
        self._waited = 0

    def on_start(self, run: Run) -> None:
        """Begin anew, or where a resumed run stood."""
        self._best, self._waited = float("inf"), 0
        for record in run.records:
            self.on_log(run, record)

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Compare with the best so far."""
        if self.monitor not in record:
            raise OptionError(
                f"EarlyStopping monitors {self.monitor!r}, the history has {', '.join(record)}"
            )
        value = self._sign * record[self.monitor]
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited >= self.patience


class TensorBoard(Callback):
    """Write every logged quantity as a TensorBoard scalar (extra ``tensorboard``)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._writer: Any = None

    def on_start(self, run: Run) -> None:
        """Open the writer; what an interrupted run logged after its checkpoint is replaced."""
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        if rank() == 0:
            step = _step_of_all(run, run.state.step)
            self._writer = SummaryWriter(str(self.directory), purge_step=step + 1)

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Write the record."""
        if self._writer is not None:
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, _step_of_all(run, int(record["step"])))
        return None

    def on_end(self, run: Run) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _step_of_all(run: Run, step: int) -> int:
    """A step, counted from the beginning of the phase before this one where there was one."""
    return step + (0 if run.earlier is None else int(run.earlier["steps"]))


class Checkpoint(Callback):
    """Save the run every so many steps and at its end, atomically; ``solve(resume=path)`` goes on.

    Parameters
    ----------
    path : str or Path
        The file; each new checkpoint replaces the last. Of several processes each writes its own,
        with its rank appended, so each needs this callback.
    every : int
        Steps between checkpoints.
    """

    def __init__(self, path: str | Path, every: int = 1000) -> None:
        check_count("every", every)
        self.path = Path(path)
        self.every = every

    def on_start(self, run: Run) -> None:
        """Refuse early what would fail at the first checkpoint."""
        if self.path.is_dir():
            raise OptionError(f"the checkpoint {self.path} is a directory, expected a file's path")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_step(self, run: Run) -> None:
        """Save if it is time, and no record of this step is still to come."""
        if not (run.state.measuring or run.state.finished):
            self._save_if_due(run)

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Save if it is time, the record included."""
        self._save_if_due(run)
        return None

    def _save_if_due(self, run: Run) -> None:
        if run.state.step % self.every == 0:
            run.save(self.path)

    def on_end(self, run: Run) -> None:
        """Save the end, unless the run failed: the last good checkpoint then stays."""
        if not run.failed:
            run.save(self.path)


class Settings(Callback):
    """Keep a run from being resumed with other settings than it was begun with.

    Parameters
    ----------
    settings : dict
        Numbers, strings and dicts of them, by the names that an error is to give.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return self.settings

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Refuse others."""
        require_same_settings(saved, self.settings)


def as_callback(callback: Any) -> Callback:
    """A callback from itself or from a function (record, state) -> stop or not."""
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type) and accepts(callback, 2):
        return UserFunction(callback)
    raise OptionError(
        f"a callback is {callback!r}, expected a Callback such as EarlyStopping() or a function of "
        "(record, state)"
    )
