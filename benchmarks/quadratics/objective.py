from __future__ import annotations

import numpy as np
from benchopt import BaseObjective
from benchopt.stopping_criterion import SufficientProgressCriterion


class Objective(BaseObjective):
    """Relative distance of x to the optimum, which is known by construction.

    ``upper_gap`` is φ(x) - φ(x*), with the lower level solved anew by Clarabel. A gradient of f, g
    or their sum counts as one evaluation, and so does a Hessian-vector product.
    """

    name = "Quadratics"
    url = "../../../benchmarks/quadratics"
    requirements = ["pip::bilevel"]
    min_benchopt_version = "1.6"
    sampling_strategy = "callback"
    stopping_criterion = SufficientProgressCriterion(eps=1e-6, patience=4, strategy="callback")

    def set_data(self, known):
        self.known = known

    def get_objective(self):
        return {"known": self.known}

    def evaluate_result(self, x, gradient_evaluations):
        x, known = np.asarray(x), self.known
        quadratic = known.quadratic
        y, _ = quadratic.response(x)
        best = quadratic.upper(known.x_star, known.y_star)
        return {
            "value": float(np.linalg.norm(x - known.x_star) / np.linalg.norm(known.x_star)),
            "upper_gap": quadratic.upper(x, y) - best,
            "gradient_evaluations": gradient_evaluations,
        }

    def get_one_result(self):
        return {"x": np.zeros_like(self.known.x_star), "gradient_evaluations": 0}
