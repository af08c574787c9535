"""The table and the figures of birq_speech.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from output import save_figure

#: By which transcripts were found -> how figures call it.
DECODERS = {"greedy": "greedy", "beam": "beam search with a language model"}
COLOURS = {"scratch": "#8a8f98", "best-rq": "#2f7ed8", "birq": "#2a9d78", "relabel": "#d97a2b"}


def table(summary: dict) -> str:
    """One row a method: means over the seeds, and standard deviations of the error rate."""
    head = (
        f"{'':10}{'greedy':>14}  {'beam, LM':>14}  {'best probe':>10}  {'labels say':>10}  "
        f"{'steps':>6}  {'pretraining':>11}  {'search':>6}"
    )
    lines = [f"{'':10}{summary['unit'] + ' error rate':^30}", head, "-" * len(head)]
    for method, runs in summary["methods"].items():
        greedy, beam = (_rate(runs, decoder) for decoder in DECODERS)
        probe = _mean(runs, lambda run: max(run["probes"][2:]) if run["probes"] else np.nan)
        labels = _mean(runs, _labels)
        steps, seconds = (
            np.mean([run[name] for run in runs]) for name in ("steps", "pretraining_seconds")
        )
        search = np.mean([run["beam"]["seconds"] for run in runs])
        lines.append(
            f"{method:10}{greedy:>14}  {beam:>14}  {probe:>10}  {labels:>10}  {steps:>6.0f}  "
            f"{seconds:>9.0f} s  {search:>4.0f} s"
        )
    lines += [
        "",
        _language_model(summary),
        "best probe: share of held-out frames whose phone a linear probe finds in the best layer"
        + _input(summary),
        "labels say: mutual information of labels and phones, over the phones' entropy and less "
        "chance;",
        "            best-rq and scratch: labels of the features; birq and relabel: of layer k",
    ]
    return "\n".join(lines)


def _rate(runs: list[dict], decoder: str) -> str:
    rates = np.array([run[decoder]["error_rate"] for run in runs])
    spread = f" ± {100 * rates.std(ddof=1):.1f}" if len(rates) > 1 else ""
    return f"{100 * rates.mean():.1f} %{spread}"


def _language_model(summary: dict) -> str:
    model = summary["language_model"]
    return (
        f"beam, LM:   beam search with {model['order']}-grams of "
        f"{model['file'] or 'the labelled transcripts'}, weight {model['weight']:g}, "
        f"bonus {model['insertion_bonus']:g}"
    )


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
        for side, opacity, decoder in ((-0.2, 0.45, "greedy"), (0.2, 0.95, "beam")):
            found = 100 * pd.DataFrame([run[decoder] for run in runs])
            mean = found.mean()
            centre = place + side
            axes.bar(centre, mean["error_rate"], width=0.36, color=COLOURS[method], alpha=opacity)
            axes.vlines(centre, mean["low"], mean["high"], color="black", linewidth=1.2)
            dots = np.full(len(found), centre + 0.09)
            axes.plot(dots, found["error_rate"], ".", color="black", markersize=4)
    for opacity, name in zip((0.45, 0.95), DECODERS.values(), strict=True):
        axes.bar(0, 0, color="#8a8f98", alpha=opacity, label=name)
    axes.margins(y=0.22)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
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
