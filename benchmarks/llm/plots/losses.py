from __future__ import annotations

from benchopt import BasePlot

#: Label -> column of the results.
SCORES = {
    "DPO loss": "objective_dpo_loss",
    "preference accuracy": "objective_preference_accuracy",
    "SFT loss": "objective_sft_loss",
}


class Plot(BasePlot):
    """A score on held-out records against the seconds of training."""

    name = "Scores"
    type = "scatter"
    options = {"dataset": ..., "objective": ..., "score": list(SCORES)}

    def plot(self, df, dataset, objective, score):
        chosen = (df["dataset_name"] == dataset) & (df["objective_name"] == objective)
        curves = []
        for solver, rows in df[chosen].groupby("solver_name"):
            points = rows.groupby("stop_val")[["time", SCORES[score]]].median()
            curves.append(
                {
                    "x": points["time"].tolist(),
                    "y": points[SCORES[score]].tolist(),
                    "label": solver,
                    **self.get_style(solver),
                }
            )
        return curves

    def get_metadata(self, df, dataset, objective, score):
        return {
            "title": f"{score}, held out\n{dataset}",
            "xlabel": "seconds of training",
            "ylabel": score,
        }
