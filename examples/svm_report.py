"""The table and the figures of svm_hyperparameters.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from output import save_figure

RESPONSES = {"penalised": "-", "exact": "--"}
DASHES = (6.0, 4.0)  # of the exact response, in points
COLOURS = {"blocc": "#2f7ed8", "pbgd-free": "#e07b28", "dc": "#2a9d78"}
#: pbgd-free and blocc may hardly differ: the one lies under the other.
LINES = {
    "pbgd-free": {"linewidth": 4.5, "alpha": 0.4, "zorder": 1.5, "solid_capstyle": "butt"},
}
#: Column of the table, its metric, and the digits of mean and standard deviation.
COLUMNS = {
    "val. loss": ("validation_loss", ".3g", ".1g"),
    "val. acc.": ("validation_accuracy", ".3f", ".3f"),
    "test acc.": ("test_accuracy", ".3f", ".3f"),
    "f(c, z)": ("upper_value", ".4g", ".2g"),
    "lower gap": ("lower_gap", ".1e", ".0e"),
    "seconds": ("seconds", ".2f", ".2f"),
}


# Table ------------------------------------------------------------------------------------------


def table(results: dict) -> str:
    """Means ± standard deviations over the splits, and what to make of them."""
    rows = []
    for name in COLOURS:
        for response in RESPONSES if name in results else ():
            lists = results[name][response]
            cells = {label: _cell(lists[key], *form) for label, (key, *form) in COLUMNS.items()}
            cells["violation <="] = f"{max(lists['constraint_violation']):.0e}"
            cells["outcome"] = _outcome(results[name])
            rows.append({"solver": name, "response": response, **cells})
    optimum = results["relaxed_optimum"]
    rows.append({
        "solver": "f*", "response": "certified" if all(optimum["certified"]) else "a bound",
        "test acc.": _cell(optimum["test_accuracy"], ".3f", ".3f"),
        "f(c, z)": _cell(optimum["value"], ".4g", ".2g"),
        "seconds": _cell(optimum["seconds"], ".2f", ".2f"),
    })  # fmt: skip
    ordinary = [
        {
            "classifier": name,
            "median C": f"{np.median(lists['C']):.2g}",
            "test acc.": _cell(lists["test_accuracy"], ".3f", ".3f"),
            "seconds": _cell(lists["seconds"], ".2f", ".2f"),
        }
        for name, lists in results["classifiers"].items()
    ]
    title = (
        f"{results['dataset']}: {results['rows']['train']} training, "
        f"{results['rows']['validation']} validation, {results['rows']['test']} test rows; mean ± "
        f"sd over {len(results['seeds'])} splits"
    )
    parts = [title, _text(rows), _text(ordinary), "\n".join(notes(results))]
    return "\n\n".join(parts)


def _cell(values: list[float], mean_digits: str, spread_digits: str) -> str:
    mean = format(np.mean(values), mean_digits)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), spread_digits)}"


def _outcome(lists: dict) -> str:
    counts = pd.Series(lists["status"]).value_counts()
    outcome = ", ".join(
        status if count == len(lists["status"]) else f"{count} {status}"
        for status, count in counts.items()
    )
    return f"{outcome}, bias ×{np.mean(lists['bias']):.1f}" if "bias" in lists else outcome


def _text(rows: list[dict[str, str]]) -> str:
    return pd.DataFrame(rows).fillna("").to_string(index=False)


def notes(results: dict) -> list[str]:
    """What the numbers do not say by themselves."""
    optimum = results["relaxed_optimum"]
    certified, count = sum(optimum["certified"]), len(optimum["certified"])
    found = [
        "f* bounds the optimum from below. It is certified to be the optimum itself on "
        f"{certified} of {count} splits"
        + ("; where the training rows are separable, it is not." if certified < count else ".")
    ]
    if "dc" in results and certified:
        found.append(f"dc ends within {_worst(results):.1e} (relative) of every certified f*.")
    if "pbgd-free" in results:
        ratio = np.mean(results["pbgd-free"]["bias"])
        found.append(
            "pbgd-free is biased here: f depends on c through its norm alone, so that it shrinks "
            "the start and learns nothing. The term of the gradient that it omits is "
            f"{ratio:.1f} times the one that it follows."
        )
    found.append(
        "This is the reproduction of a published program and not the classifier to recommend: its "
        "one bound for each training row is fitted to fewer validation rows, so the better it is "
        "solved, the more it overfits; tune one C by cross-validation, as above."
    )
    return found


def _worst(results: dict) -> float:
    optimum = results["relaxed_optimum"]
    found = results["dc"]["exact"]["upper_value"]
    return max(
        abs(value / best - 1)
        for value, best, certified in zip(
            found, optimum["value"], optimum["certified"], strict=True
        )
        if certified
    )


# Figures ----------------------------------------------------------------------------------------


def draw(results: dict, history: pd.DataFrame, folder: Path) -> None:
    """Accuracy, loss and comparison, each as PNG and SVG."""
    loss = {"validation_loss": "validation loss (mean)", "upper_value": "upper objective f(c, z)"}
    accuracy = {"validation_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
    title = f"{results['dataset']}, {len(results['seeds'])} splits: mean and standard deviation"
    figure = _curves(history, loss, "log", title)
    optimum = np.exp(np.mean(np.log(results["relaxed_optimum"]["value"])))
    if all(results["relaxed_optimum"]["certified"]):
        for axes in figure.axes[2:]:
            axes.axhline(optimum, color="k", linewidth=0.8, linestyle=":")
            axes.annotate("f*", (1.0, optimum), xycoords=("axes fraction", "data"),
                          xytext=(3, -3), textcoords="offset points")  # fmt: skip
    save_figure(figure, folder, "loss")
    save_figure(_curves(history, accuracy, "linear", title), folder, "accuracy")
    save_figure(_comparison(results), folder, "comparison")


def _curves(history: pd.DataFrame, metrics: dict[str, str], scale: str, title: str) -> Figure:
    figure = Figure(figsize=(9.0, 3.0 * len(metrics) + 0.5), layout="constrained")
    grid = figure.subplots(len(metrics), 2, sharey="row", squeeze=False)
    solvers = [name for name in COLOURS if name in set(history["solver"])]
    for (metric, label), row in zip(metrics.items(), grid, strict=True):
        row[0].set_ylabel(label)
        for axes, against in zip(row, ("step", "seconds"), strict=True):
            for name in solvers:
                for response, style in RESPONSES.items():
                    chosen = history[
                        (history["solver"] == name) & (history["response"] == response)
                    ]
                    _band(axes, chosen, against, metric, scale, style)
            _scale(axes, scale)
            axes.set_xlabel("outer step" if against == "step" else "seconds")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=COLOURS[name], label=name, **LINES.get(name, {})) for name in solvers
    ]
    handles += [
        Line2D([], [], color="0.4", linestyle=style, label=f"{response} response")
        for response, style in RESPONSES.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, title=title
    )
    return figure


def _scale(axes, scale: str) -> None:
    axes.set_yscale(scale)
    low, high = axes.get_ylim()
    if scale == "log" and high < 20 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _band(axes, rows: pd.DataFrame, against: str, metric: str, scale: str, style: str) -> None:
    """Mean over splits ± one standard deviation, of logarithms on a logarithmic axis.

    Runs that ended keep their last value.
    """
    name = rows["solver"].iloc[0]
    values = rows.pivot(index="step", columns="seed", values=metric).ffill()
    values = np.log(values) if scale == "log" else values
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=0)
    curves = [mean, mean - spread, mean + spread]
    curves = [np.exp(each) if scale == "log" else each for each in curves]
    x = values.index
    if against == "seconds":
        x = rows.pivot(index="step", columns="seed", values="seconds").ffill().mean(axis=1)
    if metric.endswith("accuracy"):
        curves = [each.clip(0, 1) for each in curves]
    (line,) = axes.plot(x, curves[0], style, color=COLOURS[name], **LINES.get(name, {}))
    if style == "--":
        line.set_dashes([length / line.get_linewidth() for length in DASHES])
    axes.fill_between(x, *curves[1:], color=COLOURS[name], alpha=0.12, linewidth=0)


def _offsets(values: np.ndarray) -> np.ndarray:
    """Heights that keep equal values apart, within one row."""
    before = np.array([np.sum(values[:i] == value) for i, value in enumerate(values)])
    return before * min(0.22, 0.7 / max(before.max(), 1))


def _comparison(results: dict) -> Figure:
    """Test accuracy of every row of the table."""
    rows = {
        f"{name}, {response} response": (results[name][response], COLOURS[name])
        for name in COLOURS
        if name in results
        for response in RESPONSES
    }
    rows |= {name: (lists, "0.35") for name, lists in results["classifiers"].items()}
    figure = Figure(figsize=(7.0, 0.36 * len(rows) + 1.0), layout="constrained")
    axes = figure.subplots()
    for height, (lists, colour) in enumerate(rows.values()):
        accuracy = np.array(lists["test_accuracy"])
        axes.plot(accuracy, height + _offsets(accuracy), ".", color=colour, alpha=0.5)
        axes.plot(accuracy.mean(), height, "|", color=colour, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(f"test accuracy on {results['dataset']}: each split, and the mean")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
