"""The progress bar of ``solve``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm.auto import tqdm

from bilevel.distributed import rank

#: What ``solve`` shows of a record, and how it is called there.
_SHOWN = {"upper": "f", "lower_gap": "gap", "violation": "violation"}


class ProgressBar:
    """Shows the step and some logged values; silent unless wanted or run in a terminal."""

    def __init__(
        self, total: int, done: int, wanted: bool | None, labels: Mapping[str, str] = _SHOWN
    ) -> None:
        self._labels = labels
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
        shown = {
            label: f"{record[name]:.3g}"
            for name, label in self._labels.items()
            if name in record and record[name] == record[name]
        }
        self._bar.set_postfix(shown)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
