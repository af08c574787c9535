from __future__ import annotations

from benchopt import BasePlot


class Plot(BasePlot):
    """Distance to the optimum against gradient evaluations, which no machine changes."""

    name = "Distance against work"
    type = "scatter"
    options = {"dataset": ...}

    def plot(self, df, dataset):
        curves = []
        for solver, rows in df[df["dataset_name"] == dataset].groupby("solver_name"):
            points = rows.groupby("stop_val")[
                ["objective_gradient_evaluations", "objective_value"]
            ].median()
            curves.append(
                {
                    "x": points["objective_gradient_evaluations"].tolist(),
                    "y": points["objective_value"].tolist(),
                    "label": solver,
                    **self.get_style(solver),
                }
            )
        return curves

    def get_metadata(self, df, dataset):
        return {
            "title": f"‖x - x*‖ / ‖x*‖\n{dataset}",
            "xlabel": "gradient evaluations",
            "ylabel": "relative distance to the optimum",
        }
