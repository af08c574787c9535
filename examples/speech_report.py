"""The table and the figures of birq_speech.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from output import save_figure

#: By which transcripts were found -> how figures call it.
DECODERS = {"greedy": "greedy", "beam": "beam search with a language model"}
#: Style, width and opacity: where the labels are the same, curves lie on one another.
PLAIN = ("-", 1.2, 1.0)
CURVES = {"best-rq": ("-", 3.5, 0.4), "birq": ((0, (4, 3)), 1.2, 1.0), "relabel": PLAIN}
COLOURS = {"scratch": "#8a8f98", "best-rq": "#2f7ed8", "birq": "#2a9d78", "relabel": "#d97a2b"}


def table(summary: dict) -> str:
    """One row a method: means over the seeds, and standard deviations of the error rate."""
    rows = pd.DataFrame(
        {method: _row(runs) for method, runs in summary["methods"].items()}
    ).T.astype(object)
    rows = rows.loc[:, (rows != "").any()]  # without alignments nothing is known of phones
    lines = [
        f"{summary['unit']} error rates on {summary['test_utterances']} utterances",
        rows.to_string(),
        "",
        _language_model(summary),
    ]
    if "CER" in rows:
        lines.append("CER:         character error rate, greedy")
    if "best probe" in rows:
        lines += [
            "best probe:  share of held-out frames whose phone a linear probe finds in the best of",
            f"             layers 1, 2, ... (in the features themselves {_input(summary):.3f})",
            "labels say:  mutual information of labels and phones, over the phones' entropy and "
            "less chance;",
            "             best-rq, scratch: labels of the features; birq, relabel: of layer k",
        ]
    if any(run["teacher_seconds"] for runs in summary["methods"].values() for run in runs):
        lines.append("pretraining: relabel's with its teacher's")
    if summary["quick"]:
        lines.append("--quick: budgets too small to compare methods")
    return "\n".join(lines)


def _row(runs: list[dict]) -> dict[str, str]:
    def mean(value, form: str) -> str:
        found = np.mean([value(run) for run in runs])
        return "" if np.isnan(found) else form.format(found)

    return {
        "greedy": _rate(runs, "greedy"),
        "beam, LM": _rate(runs, "beam"),
        "CER": mean(lambda run: 100 * _number(run["greedy"]["character_error_rate"]), "{:.1f} %"),
        "best probe": mean(lambda run: max(run["probes"][2:], default=np.nan), "{:.3f}"),
        "labels say": mean(_labels, "{:.3f}"),
        "steps": mean(lambda run: run["steps"], "{:.0f}"),
        "pretraining": mean(
            lambda run: run["pretraining_seconds"] + run["teacher_seconds"], "{:.0f} s"
        ),
        "search": mean(lambda run: run["beam"]["seconds"], "{:.0f} s"),
    }


def _rate(runs: list[dict], decoder: str) -> str:
    rates = np.array([run[decoder]["error_rate"] for run in runs])
    spread = f" ± {100 * rates.std(ddof=1):.1f}" if len(rates) > 1 else ""
    return f"{100 * rates.mean():.1f} %{spread}"


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _language_model(summary: dict) -> str:
    model = summary["language_model"]
    return (
        f"beam, LM:    beam search with {model['order']}-grams of "
        f"{model['file'] or 'the labelled transcripts'}, weight {model['weight']:g}, "
        f"bonus {model['insertion_bonus']:g}"
    )


def _labels(run: dict) -> float:
    kind = "enhanced" if run["method"] in ("birq", "relabel") else "anchor"
    return run[kind]["information"] if run.get(kind) else np.nan


def _input(summary: dict) -> float:
    return next(iter(summary["methods"].values()))[0]["probes"][0]


# Figures ----------------------------------------------------------------------------------------


def draw(summary: dict, history: pd.DataFrame, out: Path) -> None:
    """Losses and codes along pretraining; error rates and probes of every method."""
    save_figure(_errors(summary), out, "error_rates")
    if any(run["probes"] for runs in summary["methods"].values() for run in runs):
        save_figure(_probes(summary), out, "probes")
    if len(history):
        save_figure(_training(history, summary["codes"]), out, "pretraining")


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
    axes.set_title("Held-out voices; dots are seeds, lines 95 % intervals over voices", fontsize=9)
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


def _training(history: pd.DataFrame, size: int) -> Figure:
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    losses, codes = figure.subplots(1, 2)
    for (method, seed), run in history.groupby(["method", "seed"], sort=False):
        curves = [(losses, "lower", f"{method} (G)", COLOURS[method], *CURVES[method])]
        if method == "birq":
            curves += [
                (losses, "upper", "birq: enhanced labels (F)", "#7a3e9d", *PLAIN),
                (codes, "enhanced_perplexity", "birq: enhanced labels", "#7a3e9d", *PLAIN),
                (codes, "anchor_perplexity", "birq: anchor labels", "#8a8f98", *PLAIN),
            ]
        first = history.loc[history["method"] == method, "seed"].iloc[0]
        for axes, column, label, colour, style, width, opacity in curves:
            axes.plot(
                run["step"], run[column], color=colour, linestyle=style, linewidth=width,
                alpha=opacity, label=label if seed == first else None,
            )  # fmt: skip
    losses.axhline(
        np.log(size),
        color="black",
        linestyle=":",
        linewidth=1.0,
        label=f"ln {size}: all codes alike",
    )
    losses.set_title("cross-entropy of the labels, F and G / nats", fontsize=9)
    codes.set_title("codes in use: perplexity in a batch", fontsize=9)
    codes.set_ylim(bottom=0)
    for axes in (losses, codes):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    return figure
