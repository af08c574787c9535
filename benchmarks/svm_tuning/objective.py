from __future__ import annotations

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    """Accuracy of a linear classifier on unseen rows, its soft-margin C chosen on the others.

    ``log_loss`` takes the decision function for log-odds, which it estimates where the classifier
    is a logistic regression.
    """

    name = "SVM tuning"
    url = "../../../benchmarks/svm_tuning"
    requirements = ["pip::bilevel", "scikit-learn"]
    min_benchopt_version = "1.6"
    sampling_strategy = "run_once"

    def set_data(self, label, seed, train, test):
        self.label, self.seed, self.train, self.test = label, seed, train, test

    def get_objective(self):
        features, labels = self.train
        return {"features": features, "labels": labels}

    def evaluate_result(self, classifier, C, cpu_seconds):
        features, labels = self.test
        margins = labels * classifier.decision_function(features)
        return {
            "data": self.label,
            "split": self.seed,
            "test_accuracy": float(np.mean(margins > 0)),
            "log_loss": float(np.mean(np.logaddexp(0, -margins))),
            "C": C,
            "cpu_seconds": cpu_seconds,
        }

    def get_one_result(self):
        from sklearn.linear_model import LogisticRegression

        return {
            "classifier": LogisticRegression().fit(*self.train),
            "C": 1.0,
            "cpu_seconds": 0.0,
        }
