"""The bilevel problem of choosing penalties by cross-validation, and its solution."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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
    machines: Machines, bounds: tuple[float, float], tolerance: float, *, per_feature: bool = False
) -> Solution:
    """Choose the log penalty from C = 1, or those of the features from the best common one.

    ``tolerance`` bounds the derivative of the k-fold loss with respect to a shift of all log
    penalties, and the loss's relative decrease in the last iteration.
    """
    response = NewtonResponse(machines)
    problem = selection_problem(response, bounds)
    x = torch.tensor([-math.log(min(max(1.0, bounds[0]), bounds[1]))], dtype=torch.float64)
    # Both tracked responses begin here, so that the cold solve is done once.
    y = torch.from_numpy(response.solve(x.numpy(), np.zeros((len(machines), machines.width)))[0])
    common = _minimise(problem, x, y, tolerance)
    if not per_feature:
        return common
    start = common.x.repeat(machines.width - 1)
    return _minimise(problem, start, common.y, tolerance)


def _minimise(problem: BilevelProblem, x: Tensor, y: Tensor, tolerance: float) -> Solution:
    outer = QuasiNewton(tolerance=tolerance / len(x), value_tolerance=tolerance)
    solver = PBGD(penalty=PENALTY, outer=outer)
    return solver.solve(problem, x, y, tolerance=tolerance, progress=False)
