from __future__ import annotations

import numpy as np
from benchmark_utils import fitted
from benchopt import BaseSolver
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC


class Solver(BaseSolver):
    """GridSearchCV over SVC(kernel="linear") (hinge): 13 values of C, accuracy on five folds.

    Up to C = 10 only: libsvm's time grows with C, to minutes a fit at C = 1000.
    """

    name = "grid, SVC(linear)"
    requirements = ["scikit-learn"]

    def set_objective(self, features, labels):
        self.data = features, labels

    def run(self, _):
        search = GridSearchCV(SVC(kernel="linear"), {"C": np.logspace(-3, 1, 13)}, cv=5)
        self.classifier, self.cpu_seconds = fitted(search, *self.data)

    def get_result(self):
        C = self.classifier[-1].best_params_["C"]
        return {"classifier": self.classifier, "C": C, "cpu_seconds": self.cpu_seconds}
