from __future__ import annotations

import math

import numpy as np
import torch
from benchopt import BaseObjective
from benchopt.stopping_criterion import NoCriterion

from bilevel.errors import BilevelError
from bilevel.problems.svm import (
    Evaluator,
    SVMResponse,
    relaxed_optimum,
    signed_rows,
    svm_problem,
    svm_program,
)

#: γ of the published runs.
PENALTY = 12.0


class Objective(BaseObjective):
    """Choosing the error bounds c of a support vector machine (arXiv:2406.10148).

    ``value`` is the distance of the true upper objective, at the follower's exact response to c,
    from the lower bound f*, relative to f* if that exceeds 1. f* is the bilevel optimum itself
    where ``certified`` is 1. The accuracies are those of the exact and of the penalised response.
    """

    name = "SVM hyperparameters"
    url = "../../../benchmarks/svm"
    requirements = ["pip::bilevel", "pip::scikit-learn", "pip::pooch"]
    min_benchopt_version = "1.6"
    sampling_strategy = "callback"
    stopping_criterion = NoCriterion(strategy="callback")

    def skip(self, parts, seed, reason):
        return parts is None, reason or None

    def set_data(self, parts, seed, reason):
        self.parts = parts
        self.program = svm_program(parts.train, parts.validation)
        self.test_rows = signed_rows(parts.test.features, parts.test.labels)
        self.bound = relaxed_optimum(self.program)
        # A stream of its own, so that the start does not depend on how the split was drawn.
        self.c0 = np.random.RandomState(100 + seed).uniform(1.0, 5.0, len(parts.train.labels))

    def get_objective(self):
        return {
            "problem": svm_problem(self.parts.train, self.parts.validation),
            "response": SVMResponse(self.program),
            "c0": self.c0,
            "z0": torch.zeros(self.program.train_rows.shape[1], dtype=torch.float64),
            "penalty": PENALTY,
            "certified": self.bound.is_bilevel_optimum,
        }

    def evaluate_result(self, c):
        row = {"certified": float(self.bound.is_bilevel_optimum), "bound": self.bound.value}
        try:
            found = Evaluator(self.program, self.test_rows)(c, PENALTY)
        except BilevelError as error:
            return {"value": math.inf, **row, "outcome": type(error).__name__}
        exact, penalised = found["exact"], found["penalised"]
        return {
            "value": (exact.upper_value - self.bound.value) / max(1.0, self.bound.value),
            "upper_value": exact.upper_value,
            "violation": exact.constraint_violation,
            "test_accuracy": exact.test_accuracy,
            "validation_loss": exact.validation_loss,
            "penalised_test_accuracy": penalised.test_accuracy,
            "penalised_validation_loss": penalised.validation_loss,
            "outcome": "",
            **row,
        }

    def get_one_result(self):
        return {"c": self.c0}
