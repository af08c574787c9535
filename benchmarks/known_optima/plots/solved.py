from __future__ import annotations

from benchopt import BasePlot

COLUMNS = ["solver", "solved", "of", "median seconds", "slowest", "median gradients"]


class Plot(BasePlot):
    """How many problems each method solves, and at what cost."""

    name = "Solved"
    type = "table"
    options = {}

    def plot(self, df):
        return [
            [
                solver,
                int(rows["objective_solved"].sum()),
                len(rows),
                f"{rows['time'].median():.2f}",
                f"{rows['time'].max():.2f}",
                int(rows["objective_gradient_evaluations"].median()),
            ]
            for solver, rows in df.groupby("solver_name")
        ]

    def get_metadata(self, df):
        return {
            "title": "Problems solved",
            "columns": COLUMNS,
            "default_order_ascending": False,
            "default_order_column": 1,
        }
