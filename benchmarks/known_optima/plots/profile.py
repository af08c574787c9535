from __future__ import annotations

from benchopt import BasePlot


class Plot(BasePlot):
    """Data profile: the share of problems solved within so much time or so many gradients."""

    name = "Data profile"
    type = "scatter"
    options = {"budget": ["seconds", "gradient evaluations"]}

    def plot(self, df, budget):
        column = "time" if budget == "seconds" else "objective_gradient_evaluations"
        curves = []
        for solver, rows in df.groupby("solver_name"):
            costs = sorted(rows.loc[rows["objective_solved"] > 0, column])
            shares = [(index + 1) / len(rows) for index in range(len(costs))]
            curves.append({"x": costs, "y": shares, "label": solver, **self.get_style(solver)})
        return curves

    def get_metadata(self, df, budget):
        return {
            "title": "Data profile",
            "xlabel": budget,
            "ylabel": "share of problems solved",
            "scale": "semilog-x",
        }
