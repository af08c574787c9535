from __future__ import annotations

from benchopt import BasePlot

COLUMNS = {
    "ratio": ("library / by hand", "{:.2f}"),
    "ratio_10": ("10 %", "{:.2f}"),
    "ratio_90": ("90 %", "{:.2f}"),
    "library_us": ("library (µs)", "{:.0f}"),
    "hand_written_us": ("by hand (µs)", "{:.0f}"),
    "difference": ("difference in x", "{:.0e}"),
    "further_copies_of_y": ("further copies of y", "{:.2f}"),
    "tensor_growth_bytes": ("tensor growth (bytes)", "{:.0f}"),
    "resident_growth_kib": ("resident growth (KiB)", "{:.0f}"),
    "growth_steps": ("over steps", "{:.0f}"),
}


class Plot(BasePlot):
    """What a step costs."""

    name = "Costs of a step"
    type = "table"
    options = {}

    def plot(self, df):
        return [
            [
                row["dataset_name"],
                row["solver_name"],
                *(form.format(row[f"objective_{key}"]) for key, (_, form) in COLUMNS.items()),
            ]
            for _, row in df.iterrows()
        ]

    def get_metadata(self, df):
        return {
            "title": "CPU time of one step, one thread, median over alternating blocks",
            "columns": ["problem", "solver", *(name for name, _ in COLUMNS.values())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }
