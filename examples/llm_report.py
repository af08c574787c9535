"""The table and the figures of llm_finetuning.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from output import save_figure

COLOURS = {
    "pbgd-free": "#2a9d78", "pbgd": "#2f7ed8", "bome": "#8d6cc4", "alright": "#d97a2b",
    "sequential": "#c44e52", "dpo": "#8a8f98", "sft": "#b59a3c",
}  # fmt: skip


def table(summary: dict) -> str:
    """One row a method, on held-out records: means over the seeds, and standard deviations."""
    runs = [run for each in summary["methods"].values() for run in each]
    post = all("post" in run for run in runs)
    heads = ["DPO loss", "prefers right", "SFT loss"]
    heads += ["DPO after", "SFT after"] if post else []
    line = f"{'':11}" + "".join(f"{head:>17}" for head in heads) + f"{'steps':>8}{'seconds':>9}"
    lines = [line, "-" * len(line)]
    first = runs[0]["start"]
    starts = (first["dpo_loss"], first["preference_accuracy"], first["sft_loss"])
    lines.append(f"{'start':11}" + "".join(f"{value:17.4f}" for value in starts))
    for method, each in summary["methods"].items():
        columns = [("trained", "dpo_loss"), ("trained", "preference_accuracy"),
                   ("trained", "sft_loss")]  # fmt: skip
        columns += [("post", "dpo_loss"), ("post", "sft_loss")] if post else []
        cells = "".join(f"{_cell([run[a][b] for run in each]):>17}" for a, b in columns)
        steps, seconds = (np.mean([run[name] for run in each]) for name in ("steps", "seconds"))
        lines.append(f"{method:11}{cells}{steps:8.0f}{seconds:9.0f}")
    if post:
        lines += ["", "after: once the head was fine-tuned on further instructions, x kept"]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def read_tables(folders: list[tuple[str, int, Path]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Held-out losses along all runs, one phase after the other, and their diagnostics."""
    histories, diagnostics = [], []
    for method, seed, folder in folders:
        step = seconds = 0.0
        for place in sorted(folder.glob("train-[0-9].csv")):
            phase = pd.read_csv(place).assign(method=method, seed=seed)
            phase["step"] += step
            phase["seconds"] += seconds
            step, seconds = phase["step"].iloc[-1], phase["seconds"].iloc[-1]
            histories.append(phase)
        if (folder / "diagnostics.csv").is_file():
            found = pd.read_csv(folder / "diagnostics.csv")
            diagnostics.append(found.assign(method=method, seed=seed))
    return tuple(
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        for tables in (histories, diagnostics)
    )


def draw(history: pd.DataFrame, diagnostics: pd.DataFrame, out: Path) -> None:
    """Both losses against steps and seconds; flatness and bias along the run."""
    if len(history):
        save_figure(losses(history), out, "losses")
    if len(diagnostics):
        save_figure(assumptions(diagnostics), out, "diagnostics")


def losses(history: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    names = {"dpo_loss": "DPO loss, held out", "sft_loss": "SFT loss, held out / nats"}
    for row, (column, label) in zip(grid, names.items(), strict=True):
        for axes, time in zip(row, ("step", "seconds"), strict=True):
            for (method, seed), run in history.groupby(["method", "seed"], sort=False):
                first = seed == history.loc[history["method"] == method, "seed"].iloc[0]
                axes.plot(run[time], run[column], color=COLOURS[method], linewidth=1.3,
                          label=method if first else None)  # fmt: skip
            axes.grid(alpha=0.3)
            if time == "step":
                axes.set_ylabel(label)
    grid[0, 0].axhline(np.log(2.0), color="black", linestyle=":", linewidth=1)
    grid[0, 1].axhline(np.log(2.0), color="black", linestyle=":", linewidth=1, label="reference")
    grid[1, 0].set_xlabel("step")
    grid[1, 1].set_xlabel("seconds of training")
    grid[0, 1].legend(frameon=False, fontsize=8)
    return figure


def assumptions(diagnostics: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    flat, bias = figure.subplots(1, 2)
    for step, points in diagnostics.groupby("step"):
        shade = 0.25 + 0.75 * step / diagnostics["step"].max()
        flat.loglog(points["distance"], points["difference"].clip(lower=1e-8), "o", alpha=shade,
                    color=COLOURS["pbgd-free"], label=f"step {step}")  # fmt: skip
    flat.set_xlabel(r"$\|y_g - y_\gamma\|$")
    flat.set_ylabel(r"$|f(x, y_g) - f(x, y_\gamma)|$")
    flat.grid(alpha=0.3)
    flat.legend(frameon=False, fontsize=8)
    ratio = diagnostics["omitted"] / diagnostics["kept"]
    for penalty, points in diagnostics.assign(ratio=ratio).groupby("penalty"):
        mean = points.groupby("step")["ratio"].mean()
        bias.plot(mean.index, mean, "o-", label=rf"$\gamma = {penalty:g}$")
    bias.axhline(1.0, color="black", linestyle=":", linewidth=1)
    bias.set_xlabel("step")
    bias.set_ylabel("omitted gradient / kept gradient")
    bias.set_ylim(bottom=0.0)
    bias.grid(alpha=0.3)
    bias.legend(frameon=False, fontsize=8)
    return figure
