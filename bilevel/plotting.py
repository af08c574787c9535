"""Figures of runs (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bilevel.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Column of the history, axis label, logarithmic or not.
_PANELS = (
    ("upper", "upper value $f(x, y)$", False),
    ("lower", "lower value $g(x, y)$", False),
    ("lower_gap", "lower gap $g(x, y) - v(x)$", True),
    ("stationarity", "stationarity", True),
    ("violation", "constraint violation", True),
    ("bias_ratio", "bias / direction", True),
)


def plot_history(history: pd.DataFrame) -> Figure:
    """One panel a logged quantity, against steps."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    panels = [
        panel
        for panel in _PANELS
        if panel[0] in history
        and history[panel[0]].notna().any()
        and (history[panel[0]] != 0).any()
    ]
    columns = min(len(panels), 2)
    rows = -(-len(panels) // max(columns, 1))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for index, (name, label, logarithmic) in enumerate(panels):
        _panel(figure.add_subplot(rows, columns, index + 1), history, name, label, logarithmic)
    return figure


def _panel(axes: Axes, history: pd.DataFrame, name: str, label: str, logarithmic: bool) -> None:
    shown = history[["step", name]].dropna()
    if logarithmic:
        shown = shown[shown[name] > 0]
        axes.set_yscale("log")
    axes.plot(shown["step"], shown[name], marker="o" if len(shown) < 15 else None, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
