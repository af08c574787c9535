from __future__ import annotations

import numpy as np
from benchmark_utils import fitted
from benchopt import BaseSolver
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV


class Solver(BaseSolver):
    """GridSearchCV over LogisticRegression: 13 values of C, log loss on five folds.

    The grid search of what BilevelSVC minimises by default.
    """

    name = "grid, LogisticRegression"
    requirements = ["scikit-learn"]

    def set_objective(self, features, labels):
        self.data = features, labels

    def run(self, _):
        search = GridSearchCV(
            LogisticRegression(), {"C": np.logspace(-4, 4, 13)}, cv=5, scoring="neg_log_loss"
        )
        self.classifier, self.cpu_seconds = fitted(search, *self.data)

    def get_result(self):
        C = self.classifier[-1].best_params_["C"]
        return {"classifier": self.classifier, "C": C, "cpu_seconds": self.cpu_seconds}
