from __future__ import annotations

from benchopt import BasePlot


class Plot(BasePlot):
    """The true upper objective against time, and f*."""

    name = "Convergence"
    type = "scatter"
    options = {"dataset": ...}

    def plot(self, df, dataset):
        here = df[df["dataset_name"] == dataset]
        curves = []
        for solver, rows in here.groupby("solver_name"):
            points = rows.groupby("stop_val")[["time", "objective_upper_value"]].median()
            curves.append(
                {
                    "x": points["time"].tolist(),
                    "y": points["objective_upper_value"].tolist(),
                    "label": solver,
                    **self.get_style(solver),
                }
            )
        bound = {"x": [0.0, here["time"].max()], "y": [here["objective_bound"].iloc[0]] * 2}
        return [*curves, {**bound, "label": "f*", **self.get_style("f*")}]

    def get_metadata(self, df, dataset):
        return {
            "title": f"f at the exact response\n{dataset}",
            "xlabel": "seconds",
            "ylabel": "upper objective",
            "scale": "linear",
        }
