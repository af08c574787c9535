from __future__ import annotations

import numpy as np
from benchopt import BasePlot

BASELINE = "grid, LinearSVC"
COLUMNS = [
    "data", "method", "test accuracy", "difference", "± s.e.", "log loss", "median C", "CPU ms",
    "of the grid's",
]  # fmt: skip


class Plot(BasePlot):
    """Each method against the grid search over LinearSVC, split by split."""

    name = "Paired"
    type = "table"
    options = {}

    def plot(self, df):
        rows = []
        for data, runs in df.groupby("objective_data"):
            methods = {name: each.set_index("objective_split") for name, each in
                       runs.groupby("solver_name")}  # fmt: skip
            base = methods.get(BASELINE)
            rows += [[data, name, *row(each, base)] for name, each in methods.items()]
        return rows

    def get_metadata(self, df):
        splits = df["objective_split"].nunique()
        return {
            "title": f"Means over {splits} splits, of C and milliseconds medians; differences to "
            f"{BASELINE!r}, paired by split",
            "columns": COLUMNS,
            "default_order_ascending": True,
            "default_order_column": 0,
        }


def row(runs, base):
    accuracy, seconds = runs["objective_test_accuracy"], runs["objective_cpu_seconds"]
    cells = [f"{accuracy.mean():.4f}", "", ""]
    share, milliseconds = "", 1e3 * seconds.median()
    if base is not None:
        difference = (accuracy - base["objective_test_accuracy"]).dropna()
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        cells[1:] = [f"{difference.mean():+.4f}", f"{error:.4f}"]
        share = f"{seconds.median() / base['objective_cpu_seconds'].median():.2f}"
    return [
        *cells,
        f"{runs['objective_log_loss'].mean():.3f}",
        f"{runs['objective_C'].median():.3g}",
        f"{milliseconds:.0f}",
        share,
    ]
