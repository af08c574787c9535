from __future__ import annotations

import numpy as np
from benchmark_utils import fitted
from benchopt import BaseSolver

from bilevel.estimators import BilevelSVC


class Solver(BaseSolver):
    """C by the bilevel solver, from the 5-fold loss; a geometric mean where it is a vector."""

    name = "BilevelSVC"
    requirements = ["pip::bilevel"]
    parameters = {
        "loss, validation_loss, per_feature": [
            ("log_loss", "log_loss", False),
            ("log_loss", "smoothed_zero_one", False),
            ("squared_hinge", "squared_hinge", False),
            ("log_loss", "log_loss", True),
        ]
    }
    parameter_template = "{loss}, {validation_loss}, per_feature={per_feature}"

    def set_objective(self, features, labels):
        self.data = features, labels

    def warm_up(self):
        BilevelSVC(cv=2).fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])

    def run(self, _):
        classifier = BilevelSVC(
            loss=self.loss, validation_loss=self.validation_loss, per_feature=self.per_feature
        )
        self.classifier, self.cpu_seconds = fitted(classifier, *self.data)

    def get_result(self):
        C = float(np.exp(np.mean(np.log(self.classifier[-1].best_C_))))
        return {"classifier": self.classifier, "C": C, "cpu_seconds": self.cpu_seconds}
