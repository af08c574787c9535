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


def plot_penalty_path(path: pd.DataFrame) -> Figure:
    """Objective and lower gap against the penalty, from the table of a ``PenaltyPath``."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
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
    require("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
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
