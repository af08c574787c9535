"""The progress bar of ``solve``."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

from bilevel.distributed import rank


class ProgressBar:
    """Shows step, f, lower gap and violation; silent unless wanted or run in a terminal."""

    def __init__(self, total: int, done: int, wanted: bool | None) -> None:
        shown = sys.stderr.isatty() if wanted is None else wanted
        self._bar = tqdm(
            total=total, initial=done, disable=not shown or rank() > 0, unit="step", leave=False
        )

    def advance(self) -> None:
        """One step more."""
        self._bar.update()

    def show(self, record: dict[str, float]) -> None:
        """Show the last logged values."""
        if self._bar.disable:
            return
        labels = {"upper": "f", "lower_gap": "gap", "violation": "violation"}
        shown = {
            label: f"{record[name]:.3g}"
            for name, label in labels.items()
            if name in record and record[name] == record[name]
        }
        self._bar.set_postfix(shown)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
