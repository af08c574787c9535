from __future__ import annotations

from benchopt import BasePlot


class Plot(BasePlot):
    """Each problem's relative error by each method."""

    name = "Problems"
    type = "table"
    options = {}

    def plot(self, df):
        cells = df.assign(cell=[cell(row) for _, row in df.iterrows()])
        table = cells.pivot(index="p_dataset_problem", columns="solver_name", values="cell")
        return table.reset_index().fillna("").values.tolist()

    def get_metadata(self, df):
        return {
            "title": "Relative error of F; ✓: that <= 1e-3, violation and lower gap <= 1e-4",
            "columns": ["problem", *sorted(df["solver_name"].unique())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }


def cell(row):
    if row["objective_solved"]:
        return f"✓ {row['objective_relative_error']:.0e}"
    if row["objective_violation"] > 1e-4:
        return "infeasible"
    if row["objective_lower_gap"] > 1e-4:
        return "y not optimal"
    if row["objective_relative_error"] >= 0:
        return f"{row['objective_relative_error']:.0e}"
    return row["objective_outcome"]
