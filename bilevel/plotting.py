"""Figures of runs (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bilevel.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bilevel.diagnostics import FlatnessFit

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
    panels = [
        (history[["step", name]].dropna(), label, logarithmic)
        for name, label, logarithmic in _PANELS
        if name in history
    ]
    panels = [panel for panel in panels if panel[0].iloc[:, 1].any()]
    rows = max(-(-len(panels) // 2), 1)
    figure = _figure(8.4 if len(panels) > 1 else 4.8, 2.8 * rows)
    grid = figure.add_gridspec(rows, 2)
    # Of an odd number the first, the upper value, takes a whole row.
    cells = [grid[0, :]] if len(panels) % 2 else []
    cells += [grid[row, column] for row in range(len(cells), rows) for column in range(2)]
    for cell, panel in zip(cells, panels, strict=False):  # a history may have none
        _panel(figure.add_subplot(cell), *panel)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure in inches, among those that ``pyplot.show`` shows and ``pyplot.close`` frees."""
    require("matplotlib", "plot")
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained")


def _panel(axes: Axes, rows: pd.DataFrame, label: str, logarithmic: bool) -> None:
    marker = "o" if len(rows) < 15 else None
    steps, values = rows.iloc[:, 0], rows.iloc[:, 1]
    if logarithmic:
        axes.set_yscale("log")
        axes.plot(steps, values.where(values > 0), marker=marker, markersize=3)
        if (values < 0).any():  # the gap, while the tracked response lags behind
            axes.plot(steps, -values.where(values < 0), ":", color="C0", label="negative")
            axes.legend()
    else:
        axes.plot(steps, values, marker=marker, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def plot_penalty_path(path: pd.DataFrame) -> Figure:
    """Objective and lower gap against the penalty, from the table of a ``PenaltyPath``."""
    figure = _figure(8.4, 3.2)
    values, gaps = figure.subplots(1, 2)
    penalty = path["penalty"]
    values.plot(penalty, path["penalised_value"], "s-", markersize=4, label=r"$F_\gamma(x)$")
    values.plot(penalty, path["upper_value"], "o-", markersize=4, label=r"$f(x, y_\gamma)$")
    values.set_ylabel("upper level")
    shown = path[path["lower_gap"] > 0]
    gaps.plot(shown["penalty"], shown["lower_gap"], "o-", markersize=4, label="lower gap")
    if len(shown) > 1:
        rate = shown["lower_gap"].iloc[0] * (shown["penalty"] / shown["penalty"].iloc[0]) ** -2.0
        gaps.plot(shown["penalty"], rate, "k:", linewidth=1, label=r"$\propto \gamma^{-2}$")
        gaps.set_yscale("log")
    gaps.set_ylabel(r"lower gap $g(x, y_\gamma) - v(x)$")
    for axes in (values, gaps):
        axes.set_xscale("log")
        axes.set_xlabel(r"penalty $\gamma$")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_flatness(fit: FlatnessFit) -> Figure:
    """The measured points and their envelope, both axes logarithmic."""
    figure = _figure(4.8, 3.4)  # first: it names the extra where matplotlib is missing
    from matplotlib.ticker import NullFormatter

    axes = figure.add_subplot()
    shown = (fit.distances > 0) & (fit.differences > 0)
    axes.plot(fit.distances[shown], fit.differences[shown], ".", markersize=4, label="run")
    positive = fit.distances[fit.distances > 0]
    grid = np.geomspace(positive.min(), positive.max(), 100)
    decades = np.log10(positive)
    label = rf"$c\,d^\alpha + \delta$, $\alpha = {fit.alpha:.2f}$"
    axes.plot(grid, fit.bound(grid), "-", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(10 ** np.floor(decades.min()), 10 ** np.ceil(decades.max()))
    axes.xaxis.set_minor_formatter(NullFormatter())  # between decades the labels would overlap
    axes.set_xlabel(r"distance $d = \|y_g - y_\gamma\|$")
    axes.set_ylabel(r"$|f(x, y_g) - f(x, y_\gamma)|$")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
