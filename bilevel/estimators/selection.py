"""The bilevel problem of choosing penalties by cross-validation, and its solution."""

from __future__ import annotations

import math

import numpy as np
import torch

from bilevel.domains import Box
from bilevel.estimators.machines import Machines
from bilevel.estimators.newton import NewtonResponse
from bilevel.outer import QuasiNewton
from bilevel.problem import BilevelProblem
from bilevel.solution import Solution
from bilevel.solvers import PBGD

#: γ. The chosen penalties are off by O(1/γ); rounding enters their gradient as 1e-15 γ.
PENALTY = 1e5


def selection_problem(response: NewtonResponse, bounds: tuple[float, float]) -> BilevelProblem:
    r"""The k-fold loss as a bilevel problem: x are the log penalties, y all the folds' classifiers.

    Parameters
    ----------
    response : NewtonResponse
        The folds' classifiers, with the method that trains them.
    bounds : tuple of float
        Bounds on :math:`C = e^{-x}`.
    """
    least, most = bounds
    return BilevelProblem(
        upper=response.machines.upper,
        lower=response.machines.lower,
        upper_domain=Box(-math.log(most), -math.log(least)),
        lower_response=response,
    )


def select(
    machines: Machines, count: int, bounds: tuple[float, float], tolerance: float
) -> Solution:
    """Choose ``count`` log penalties, from C = 1 or the nearest bound.

    ``tolerance`` bounds the derivative of the k-fold loss with respect to their common shift and
    the loss's relative decrease in a last iteration.
    """
    response = NewtonResponse(machines)
    start = np.full(count, -math.log(min(max(1.0, bounds[0]), bounds[1])))
    # Both tracked responses begin here, so that the cold solve is done once.
    y, _ = response.solve(start, np.zeros((len(machines), machines.width)))
    outer = QuasiNewton(tolerance=tolerance / count, value_tolerance=tolerance)
    return PBGD(penalty=PENALTY, outer=outer).solve(
        selection_problem(response, bounds),
        torch.from_numpy(start),
        torch.from_numpy(y),
        tolerance=tolerance,
        progress=False,
    )
