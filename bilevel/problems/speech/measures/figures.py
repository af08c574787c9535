"""Figures of measures, drawn into axes that are given (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bilevel.problems.speech.measures.bootstrap import Array, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_error_rates(axes: Axes, rates: Mapping[str, Estimate], label: str) -> None:
    """A bar for each system with the interval of its error rate, in percent.

    Parameters
    ----------
    axes
        Where to draw.
    rates
        By the systems' names.
    label
        Of the axis, e.g. ``"phone error rate"``.
    """
    places = np.arange(len(rates))
    values, below, above = _bars(list(rates.values()))
    axes.bar(
        places,
        100 * values,
        width=0.6,
        color=[f"C{place % 10}" for place in places],
        alpha=0.8,
        yerr=100 * np.stack([below, above]),
        capsize=4,
    )
    axes.set_xticks(places, list(rates))
    axes.set_ylabel(f"{label} / %")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def plot_probes(
    axes: Axes, accuracies: Mapping[str, Sequence[Estimate]], layers: Sequence[str] | None = None
) -> None:
    """Accuracy of the probes by layer, in percent, a line for each model.

    Parameters
    ----------
    axes
        Where to draw.
    accuracies
        By the models' names.
    layers
        The layers' names; 1, 2, ... where not given.
    """
    deepest = max(len(estimates) for estimates in accuracies.values())
    for name, estimates in accuracies.items():
        values, below, above = _bars(estimates)
        axes.errorbar(
            np.arange(len(estimates)),
            100 * values,
            yerr=100 * np.stack([below, above]),
            marker="o",
            markersize=4,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(deepest), layers or [str(layer + 1) for layer in range(deepest)])
    axes.set_xlabel("layer")
    axes.set_ylabel("frame phone accuracy / %")
    axes.grid(alpha=0.3)
    axes.legend()


def plot_perplexities(axes: Axes, history: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Perplexity of the codes over the steps, on a logarithmic axis.

    Parameters
    ----------
    axes
        Where to draw.
    history
        With a column ``step``.
    columns
        What to call each of the columns drawn, e.g. ``{"anchor_perplexity": "anchor"}``.
    """
    for column, name in columns.items():
        rows = history[["step", column]].dropna()
        axes.plot(rows["step"], rows[column], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("code perplexity")
    axes.grid(alpha=0.3)
    axes.legend()


def _bars(estimates: Sequence[Estimate]) -> tuple[Array, Array, Array]:
    """Values, and the parts of their intervals below and above; none is negative."""
    rows = np.array([[each.value, each.low, each.high] for each in estimates])
    values, low, high = rows.T
    return values, (values - low).clip(min=0), (high - values).clip(min=0)
