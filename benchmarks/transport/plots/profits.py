from __future__ import annotations

from benchopt import BasePlot

#: Column of the results -> heading and format.
COLUMNS = {
    "objective_profit": ("true profit", "{:.4f}"),
    "objective_trimmed_profit": ("trimmed", "{:.4f}"),
    "objective_published": ("published code", "{:.4g}"),
    "objective_best_known": ("best known", "{:.4f}"),
    "objective_share_served": ("share served", "{:.3f}"),
    "time": ("seconds", "{:.1f}"),
    "objective_cpu_seconds": ("CPU s", "{:.1f}"),
    "objective_peak_gib": ("peak GiB", "{:.2f}"),
}


class Plot(BasePlot):
    """The profit of each method's plan, what it took, and the numbers to compare with."""

    name = "Profits"
    type = "table"
    options = {}

    def plot(self, df):
        ordered = df.sort_values(["dataset_name", "solver_name"])
        return [
            [row["dataset_name"], row["solver_name"], *cells(row)] for _, row in ordered.iterrows()
        ]

    def get_metadata(self, df):
        return {
            "title": "True profit, by an independent exact response; peak of the whole process",
            "columns": ["network", "method", *(heading for heading, _ in COLUMNS.values())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }


def cells(row):
    return [
        form.format(row[key]) if row[key] == row[key] else "–" for key, (_, form) in COLUMNS.items()
    ]
