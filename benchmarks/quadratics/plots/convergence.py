from __future__ import annotations

from benchopt import BasePlot

#: What a run may spend -> column of the results.
BUDGETS = {"gradient evaluations": "objective_gradient_evaluations", "seconds": "time"}


class Plot(BasePlot):
    """Distance to the optimum against work, which no machine changes, or time."""

    name = "Convergence"
    type = "scatter"
    options = {"dataset": ..., "budget": list(BUDGETS)}

    def plot(self, df, dataset, budget):
        curves = []
        for solver, rows in df[df["dataset_name"] == dataset].groupby("solver_name"):
            points = rows.groupby("stop_val")[[BUDGETS[budget], "objective_value"]].median()
            curves.append(
                {
                    "x": points[BUDGETS[budget]].tolist(),
                    "y": points["objective_value"].tolist(),
                    "label": solver,
                    **self.get_style(solver),
                }
            )
        return curves

    def get_metadata(self, df, dataset, budget):
        return {
            "title": f"‖x - x*‖ / ‖x*‖\n{dataset}",
            "xlabel": budget,
            "ylabel": "relative distance to the optimum",
            "scale": "loglog",
        }
