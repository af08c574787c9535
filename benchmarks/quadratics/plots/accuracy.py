from __future__ import annotations

from benchopt import BasePlot

COLUMNS = ["solver", "dataset", "relative distance", "φ(x) - φ(x*)", "gradients", "seconds"]


class Plot(BasePlot):
    """Where each method ended."""

    name = "Final accuracy"
    type = "table"
    options = {}

    def plot(self, df):
        names = ["dataset_name", "solver_name"]
        ends = df.sort_values("stop_val").groupby(names).tail(1).set_index(names).sort_index()
        return [
            [
                solver,
                dataset,
                f"{row['objective_value']:.1e}",
                f"{row['objective_upper_gap']:.1e}",
                int(row["objective_gradient_evaluations"]),
                f"{row['time']:.2f}",
            ]
            for (dataset, solver), row in ends.iterrows()
        ]

    def get_metadata(self, df):
        return {
            "title": "At the end of each run (converged, or out of time)",
            "columns": COLUMNS,
            "default_order_ascending": True,
            "default_order_column": 1,
        }
