from __future__ import annotations

from benchopt import BasePlot

#: Column of the results -> heading and format.
COLUMNS = {
    "objective_dpo_loss": ("DPO loss", "{:.4f}"),
    "objective_preference_accuracy": ("prefers right", "{:.3f}"),
    "objective_sft_loss": ("SFT loss", "{:.4f}"),
    "objective_steps": ("steps", "{:.0f}"),
    "time": ("seconds", "{:.1f}"),
}


class Plot(BasePlot):
    """What each method has reached when the time is over, and where all began."""

    name = "Equal times"
    type = "table"
    options = {}

    def plot(self, df):
        ordered = df.sort_values("stop_val")
        runs = ordered.groupby(["dataset_name", "solver_name"])
        starts = ordered.groupby("dataset_name").first()
        rows = [[dataset, "start", *cells(row)] for dataset, row in starts.iterrows()]
        rows += [[*names, *cells(row)] for names, row in runs.last().iterrows()]
        return sorted(rows, key=lambda row: (row[0], row[1] != "start"))

    def get_metadata(self, df):
        return {
            "title": "Held-out records after equal times of training",
            "columns": ["data", "method", *(heading for heading, _ in COLUMNS.values())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }


def cells(row):
    return [form.format(row[key]) for key, (_, form) in COLUMNS.items()]
