"""The table and the figures of seville_transport.py."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from output import save_figure
from transport_map import draw_map, is_built

BLUE, GREEN = "#2f7ed8", "#2a9d78"
#: Heading of the table, key in summary.json, digits.
COLUMNS = {
    "true profit": ("true_profit", ".4f"),
    "revenue": ("revenue", ".2f"),
    "construction": ("construction_cost", ".2f"),
    "share served": ("share_served", ".4f"),
    "links built": ("links_built", "d"),
    "unused": ("unused_capacity", ".2g"),
    "lower gap": ("lower_gap", ".0e"),
    "violation": ("violation", ".0e"),
    "seconds": ("seconds", ".1f"),
    "CPU s": ("cpu_seconds", ".1f"),
}


# Table ------------------------------------------------------------------------------------------


def summary(stages: dict) -> dict:
    """The numbers of the last plan, and of each stage."""
    rows = {name: _numbers(stage) for name, stage in stages.items()}
    network = list(stages.values())[-1].plan.network
    size = {"nodes": len(network.nodes), "links": len(network.tail), "pairs": len(network.origin)}
    return {"network": network.name, **size, **list(rows.values())[-1], "stages": rows}


def _numbers(stage) -> dict:
    plan = stage.plan
    return {
        "true_profit": plan.profit,
        "trimmed_profit": plan.trimmed_profit,
        "revenue": plan.revenue,
        "construction_cost": plan.construction_cost,
        "share_served": plan.share_served,
        "links_built": int(is_built(plan).sum()),
        "total_capacity": float(plan.capacity.sum()),
        "unused_capacity": plan.unused_capacity,
        "lower_gap": stage.lower_gap,
        "certified_gap": plan.gap,
        "profit_error": plan.profit_error,
        "violation": stage.violation,
        "seconds": stage.seconds,
        "cpu_seconds": stage.cpu_seconds,
    }


def table(stages: dict) -> str:
    """One row a stage, judged by the passengers' exact answer."""
    network = list(stages.values())[-1].plan.network
    rows = {}
    for name, stage in stages.items():
        numbers = _numbers(stage)
        rows[name] = {label: format(numbers[key], form) for label, (key, form) in COLUMNS.items()}
    return (
        f"{network.name}: {len(network.nodes)} nodes, {len(network.tail)} candidate links, "
        f"{len(network.origin)} pairs\n\n{pd.DataFrame(rows).T.to_string()}\n\n"
        "Profits, shares and capacities are those of the passengers' exact answer, certified by\n"
        "its primal-dual gap. Seconds are counted from the beginning."
    )


# Figures ----------------------------------------------------------------------------------------


def draw(stages: dict, history: pd.DataFrame, folder: Path) -> None:
    """The map of the last plan, and the way to it."""
    save_figure(draw_map(list(stages.values())[-1].plan), folder, "map")
    save_figure(_convergence(stages, history), folder, "convergence")


def _convergence(stages: dict, history: pd.DataFrame) -> Figure:
    polished = history[history["stage"] == "polish"]
    figure = Figure(figsize=(9.0 if len(polished) else 5.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if len(polished) else 1, squeeze=False)[0]
    steps = history[history["stage"] == "BLOCC"]
    panels[0].plot(steps["penalty"], -steps["upper"], color=BLUE, label="planned, at $y_γ$")
    panels[0].plot(
        steps["penalty"].iloc[-1], stages["BLOCC"].plan.profit, "o", color="k", markersize=5,
        label="exact, at the end",
    )  # fmt: skip
    panels[0].set(xscale="log", xlabel="penalty γ", ylabel="profit")
    if len(polished):
        panels[1].plot(polished["step"], -polished["upper"], "o-", color=GREEN, markersize=3.5,
                       label="polish, best so far")  # fmt: skip
        panels[1].axhline(stages["BLOCC"].plan.profit, color="k", linewidth=0.8, linestyle=":",
                          label="BLOCC, exact")  # fmt: skip
        panels[1].set(xlabel="round of the search on tolls", ylabel="profit")
        panels[1].xaxis.get_major_locator().set_params(integer=True)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{stages['BLOCC'].plan.network.name}", fontsize="medium")
    return figure
