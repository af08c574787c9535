from __future__ import annotations

from benchopt import BasePlot

#: Column of the results -> heading and format.
COLUMNS = {
    "objective_upper_value": ("f, exact response", "{:.2f}"),
    "objective_bound": ("f*", "{:.2f}"),
    "objective_value": ("(f - f*) / max(1, f*)", "{:.1e}"),
    "objective_validation_loss": ("validation loss", "{:.3f}"),
    "objective_test_accuracy": ("test accuracy", "{:.3f}"),
    "objective_penalised_validation_loss": ("validation loss, penalised", "{:.3f}"),
    "objective_penalised_test_accuracy": ("test accuracy, penalised", "{:.3f}"),
    "time": ("seconds", "{:.2f}"),
}


class Plot(BasePlot):
    """Means over the splits at the end of the runs."""

    name = "Final means"
    type = "table"
    options = {}

    def plot(self, df):
        data = df.assign(data=df["dataset_name"].str.split("[").str[0])
        names = ["data", "dataset_name", "solver_name"]
        ends = data.sort_values("stop_val").groupby(names).tail(1).set_index(names)
        means = ends[list(COLUMNS)].groupby(level=["data", "solver_name"]).agg(["mean", "size"])
        return [
            [
                data,
                solver,
                int(row[("time", "size")]),
                *(form.format(row[(key, "mean")]) for key, (_, form) in COLUMNS.items()),
            ]
            for (data, solver), row in means.iterrows()
        ]

    def get_metadata(self, df):
        return {
            "title": "Means over the splits; f* is the optimum where certified, else a bound",
            "columns": ["data", "solver", "splits", *(name for name, _ in COLUMNS.values())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }
