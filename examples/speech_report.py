"""The table and the figures of birq_speech.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from output import save_figure

COLOURS = {"scratch": "#8a8f98", "best-rq": "#2f7ed8", "birq": "#2a9d78", "relabel": "#d97a2b"}


def table(summary: dict) -> str:
    """One row a method: means over the seeds, and standard deviations of the error rate."""
    unit = summary["unit"]
    head = f"{unit + ' error rate':>22}  {'best probe':>10}  {'labels say':>10}  {'steps':>6}"
    lines = [f"{'':10}{head}  {'seconds':>8}", "-" * (10 + len(head) + 10)]
    for method, runs in summary["methods"].items():
        rates = np.array([run["error_rate"] for run in runs])
        spread = f" ± {100 * rates.std(ddof=1):.1f}" if len(rates) > 1 else ""
        rate = f"{100 * rates.mean():.1f} %{spread}"
        probe = _mean(runs, lambda run: max(run["probes"][2:]) if run["probes"] else np.nan)
        labels = _mean(runs, _labels)
        steps, seconds = (
            np.mean([run[name] for run in runs]) for name in ("steps", "pretraining_seconds")
        )
        lines.append(
            f"{method:10}{rate:>22}  {probe:>10}  {labels:>10}  {steps:>6.0f}  {seconds:>8.0f}"
        )
    lines += [
        "",
        "best probe: share of held-out frames whose phone a linear probe finds in the best layer"
        + _input(summary),
        "labels say: mutual information of labels and phones, over the phones' entropy and less "
        "chance;",
        "            best-rq and scratch: labels of the features; birq and relabel: of layer k",
    ]
    return "\n".join(lines)


def _mean(runs: list[dict], value) -> str:
    found = np.mean([value(run) for run in runs])
    return "" if np.isnan(found) else f"{found:.3f}"


def _labels(run: dict) -> float:
    kind = "enhanced" if run["method"] in ("birq", "relabel") else "anchor"
    return run[kind]["information"] if run.get(kind) else np.nan


def _input(summary: dict) -> str:
    runs = next(iter(summary["methods"].values()))
    return (
        f"\n            (in the features themselves {runs[0]['probes'][0]:.3f})"
        if runs[0]["probes"]
        else ""
    )


# Figures ----------------------------------------------------------------------------------------


def draw(summary: dict, history: pd.DataFrame, out: Path) -> None:
    """Losses and codes along pretraining; error rates and probes of every method."""
    save_figure(_errors(summary), out, "error_rates")
    if any(run["probes"] for runs in summary["methods"].values() for run in runs):
        save_figure(_probes(summary), out, "probes")
    if len(history):
        save_figure(_training(history), out, "pretraining")


def _errors(summary: dict) -> Figure:
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (method, runs) in enumerate(summary["methods"].items()):
        rates = 100 * np.array([run["error_rate"] for run in runs])
        low, high = (100 * np.mean([run[name] for run in runs]) for name in ("low", "high"))
        axes.bar(place, rates.mean(), width=0.6, color=COLOURS[method], alpha=0.85)
        axes.vlines(place, low, high, color="black", linewidth=1.2)
        axes.plot(np.full(len(rates), place + 0.15), rates, ".", color="black", markersize=4)
    axes.set_xticks(range(len(summary["methods"])), list(summary["methods"]))
    axes.set_ylabel(f"{summary['unit']} error rate / %")
    axes.set_title("Held-out voices; dots are seeds, lines 95 % intervals", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _probes(summary: dict) -> Figure:
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for method, runs in summary["methods"].items():
        layers = 100 * np.array([run["probes"] for run in runs])
        mean = layers.mean(axis=0)
        axes.plot(mean[1:], "o-", color=COLOURS[method], label=method, markersize=4)
        if len(runs) > 1:
            axes.fill_between(
                range(len(mean) - 1), layers[:, 1:].min(0), layers[:, 1:].max(0),
                color=COLOURS[method], alpha=0.15, linewidth=0,
            )  # fmt: skip
    axes.axhline(mean[0], color="black", linestyle=":", label="features themselves")
    axes.set_xticks(range(len(mean) - 1), ["front end", *range(1, len(mean) - 1)])
    axes.set_xlabel("layer")
    axes.set_ylabel("frames whose phone a probe finds / %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _training(history: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    losses, codes = figure.subplots(1, 2)
    for (method, seed), run in history.groupby(["method", "seed"], sort=False):
        label = method if seed == history["seed"].iloc[0] else None
        colour = COLOURS[method]
        losses.plot(run["step"], run["lower"], color=colour, label=label, linewidth=1.2)
        if method == "birq":
            codes.plot(
                run["step"], run["enhanced_perplexity"], color=colour, linewidth=1.2,
                label=None if label is None else "enhanced labels",
            )  # fmt: skip
            codes.plot(
                run["step"], run["anchor_perplexity"], color="#8a8f98", linewidth=1.2,
                label=None if label is None else "anchor labels",
            )  # fmt: skip
            losses.plot(
                run["step"], run["upper"], color=colour, linestyle="--", linewidth=1.0,
                label=None if label is None else "birq: enhanced (F)",
            )  # fmt: skip
    losses.set_title("cross-entropy of the labels (G) / nats", fontsize=9)
    codes.set_title("codes in use: perplexity in a batch", fontsize=9)
    codes.set_ylim(bottom=0)
    for axes in (losses, codes):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    return figure
