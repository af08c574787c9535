"""The table and the figures of seville_transport.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from output import save_figure
from transport_map import draw_map, is_built, plain

from bilevel.problems.transport import Plan

BLUE, GREEN, RED = "#2f7ed8", "#2a9d78", "#c8553d"
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


def summary(plan: Plan) -> dict:
    """The numbers of the plan, and of each stage."""
    network = plan.assessment.network
    size = {"nodes": len(network.nodes), "links": len(network.tail), "pairs": len(network.origin)}
    stages = numbers(plan)
    return {"network": network.name, **size, **list(stages.values())[-1], "stages": stages}


def numbers(plan: Plan) -> dict[str, dict]:
    """Of each stage's plan, and the seconds from the beginning to its end."""
    seconds = plan.stages[["seconds", "cpu_seconds"]].cumsum()
    plans = {"BLOCC": plan.blocc, "trimmed": plan.trimmed, "polished": plan.polished}
    gaps = {name: each.lower_gap for name, each in plans.items() if each is not None}
    gaps["BLOCC"] = plan.solution.lower_gap
    return {
        name: {
            "true_profit": plans[name].profit,
            "trimmed_profit": plans[name].trimmed_profit,
            "revenue": plans[name].revenue,
            "construction_cost": plans[name].construction_cost,
            "share_served": plans[name].share_served,
            "links_built": int(is_built(plans[name]).sum()),
            "total_capacity": float(plans[name].capacity.sum()),
            "unused_capacity": plans[name].unused_capacity,
            "lower_gap": gaps[name],
            "certified_gap": plans[name].gap,
            "profit_error": plans[name].profit_error,
            "violation": plan.stages.loc[name, "violation"],
            **seconds.loc[name].to_dict(),
        }
        for name in gaps
    }


def pairs(plan: Plan) -> pd.DataFrame:
    """One row a pair of nodes: the share of its demand that is served, and what it pays."""
    network, share = plan.assessment.network, plan.assessment.share
    return pd.DataFrame(
        {
            "o": [network.nodes[k] for k in network.origin],
            "dest": [network.nodes[k] for k in network.destination],
            "demand": network.demand,
            "share": share,
            "revenue": network.demand * network.fare * share,
        }
    )


def table(plan: Plan) -> str:
    """One row a stage, judged by the passengers' exact answer."""
    network = plan.assessment.network
    rows = {
        name: {label: format(stage[key], form) for label, (key, form) in COLUMNS.items()}
        for name, stage in numbers(plan).items()
    }
    return (
        f"{network.name}: {len(network.nodes)} nodes, {len(network.tail)} candidate links, "
        f"{len(network.origin)} pairs\n\n{pd.DataFrame(rows).T.to_string()}\n\n"
        "Profits, shares and capacities are those of the passengers' exact answer, certified by\n"
        "its primal-dual gap. Lower gaps are BLOCC's at its last penalty, else this certificate.\n"
        "Seconds are counted from the beginning, of a resumed run from where it was resumed."
    )


# History and figures -----------------------------------------------------------------------------


def history(plan: Plan) -> pd.DataFrame:
    """The steps of the best run of BLOCC, and the rounds of the polish."""
    steps = plan.solution.history.assign(stage="BLOCC")
    if plan.search is None:
        return steps
    profits = np.array([plan.search.start_profit, *plan.search.profits])
    rounds = pd.DataFrame({"step": np.arange(len(profits)), "true_profit": profits})
    return pd.concat([steps, rounds.assign(stage="polish")], ignore_index=True)


def draw(plan: Plan, folder: Path) -> None:
    """The map of the plan, and the way to it."""
    save_figure(draw_map(plan.assessment), folder, "map")
    save_figure(_convergence(plan), folder, "convergence")


def _convergence(plan: Plan) -> Figure:
    polished = plan.search is not None
    figure = Figure(figsize=(9.0 if polished else 5.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if polished else 1, squeeze=False)[0]
    _draw_run(panels[0], plan)
    if polished:
        _draw_polish(panels[1], plan)
    for axes in panels:
        axes.set_ylabel("profit")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plain(plan.assessment.network.name), fontsize="medium")
    return figure


def _draw_run(axes: Axes, plan: Plan) -> None:
    steps = plan.solution.history
    true = steps.dropna(subset=["true_profit"])
    last = steps["penalty"].iloc[-1], plan.blocc.profit
    axes.plot(steps["penalty"], -steps["upper"], color=BLUE, label="as planned, at $y_γ$")
    axes.plot(true["penalty"], true["true_profit"], ".-", color=RED,
              label="as passengers answer, at $y_g$")  # fmt: skip
    axes.plot(*last, "o", color="k", markersize=5, label="exact check, at the end")
    axes.set(xscale="log", xlabel="penalty γ")


def _draw_polish(axes: Axes, plan: Plan) -> None:
    profits = [plan.search.start_profit, *plan.search.profits]
    axes.plot(profits, "o-", color=GREEN, markersize=3.5, label="polish, best so far")
    axes.axhline(plan.blocc.profit, color="k", linewidth=0.8, linestyle=":", label="BLOCC, exact")
    axes.set_xlabel("round of the search on tolls")
    axes.xaxis.get_major_locator().set_params(integer=True)
