from __future__ import annotations

import math

import numpy as np
import torch
from benchopt import BaseObjective
from scipy.optimize import minimize

#: A problem is solved within these bounds.
RELATIVE_ERROR, VIOLATION, LOWER_GAP = 1e-3, 1e-4, 1e-4


class Objective(BaseObjective):
    """Distance of a returned (x, y) to the known optimum.

    The lower level is solved anew at the returned x, by SciPy's SLSQP and without any of the
    library's solvers, so that every method is judged by the same independent measure.
    """

    name = "Known optima"
    url = "../../../benchmarks/known_optima"
    requirements = ["pip::bilevel"]
    min_benchopt_version = "1.6"
    sampling_strategy = "run_once"

    def set_data(self, known):
        self.known = known

    def get_objective(self):
        return {"problem": self.known.problem, "x0": self.known.x0, "y0": self.known.y0}

    def evaluate_result(self, x, y, gradient_evaluations, outcome):
        row = {
            "solved": 0.0,
            "relative_error": math.nan,
            "violation": math.nan,
            "lower_gap": math.nan,
            "upper_value": math.nan,
            "gradient_evaluations": gradient_evaluations,
            "outcome": outcome,
        }
        if x is None:
            return row
        problem, best = self.known.problem, self.known.upper_value
        value = float(problem.upper_value(x, y))
        row["upper_value"] = value
        row["relative_error"] = abs(value - best) / (abs(best) or 1.0)
        row["violation"] = violation(problem, x, y)
        row["lower_gap"] = float(problem.lower_value(x, y)) - lower_value(
            problem, x, [y, self.known.y0]
        )
        row["solved"] = float(
            row["relative_error"] <= RELATIVE_ERROR
            and row["violation"] <= VIOLATION
            and row["lower_gap"] <= LOWER_GAP
        )
        return row

    def get_one_result(self):
        return {"x": self.known.x0, "y": self.known.y0, "gradient_evaluations": 0, "outcome": ""}


def violation(problem, x, y):
    """The largest of 0 and the constraints of both levels."""
    values = (problem.inequalities(x, y), problem.upper_inequalities(x, y))
    return max([0.0, *(float(each.max()) for each in values if each is not None)])


def lower_value(problem, x, starts):
    """v(x) to about 1e-8, from the best feasible end of SLSQP; NaN where none is feasible."""

    def value(y):
        y = torch.tensor(y, requires_grad=True)
        g = problem.lower_value(x, y)
        return g.item(), torch.autograd.grad(g, y)[0].numpy()

    def constraints(y):
        return -problem.inequalities(x, torch.tensor(y)).numpy()

    def jacobian(y):
        return -torch.autograd.functional.jacobian(
            lambda z: problem.inequalities(x, z), torch.tensor(y)
        ).numpy()

    kept = []
    if problem.lower_constraints is not None:
        kept = [{"type": "ineq", "fun": constraints, "jac": jacobian}]
    best = math.inf
    for start in starts:
        found = minimize(
            value, start.numpy(), jac=True, method="SLSQP", constraints=kept,
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        if not kept or np.min(constraints(found.x)) >= -1e-8:
            best = min(best, found.fun)
    return best if math.isfinite(best) else math.nan
