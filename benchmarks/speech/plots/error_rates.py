from __future__ import annotations

from benchopt import BasePlot

#: Column of the results -> heading and format.
COLUMNS = {
    "objective_value": ("phone errors", "{:.3f}"),
    "objective_low": ("low", "{:.3f}"),
    "objective_high": ("high", "{:.3f}"),
    "objective_searched": ("with LM", "{:.3f}"),
    "objective_perplexity_ratio": ("perplexity ratio", "{:.2f}"),
    "objective_best_probe": ("best probe", "{:.3f}"),
    "objective_features_probe": ("features' probe", "{:.3f}"),
    "time": ("pretraining s", "{:.0f}"),
    "objective_finetuning_seconds": ("fine-tuning s", "{:.0f}"),
    "objective_search_seconds": ("search s", "{:.0f}"),
}


class Plot(BasePlot):
    """Means over the seeds."""

    name = "Error rates"
    type = "table"
    options = {}

    def plot(self, df):
        groups = df.groupby(["dataset_name", "solver_name"])
        means, seeds = groups[list(COLUMNS)].mean(), groups.size()
        return [
            [
                *names,
                int(seeds[names]),
                *(form.format(row[key]) for key, (_, form) in COLUMNS.items()),
            ]
            for names, row in means.iterrows()
        ]

    def get_metadata(self, df):
        return {
            "title": "Means over the seeds; low and high bound 95 % by a bootstrap over sentences",
            "columns": ["speech", "method", "seeds", *(name for name, _ in COLUMNS.values())],
            "default_order_ascending": True,
            "default_order_column": 0,
        }
