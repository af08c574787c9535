"""Newton's method on the optimality conditions of the follower, with the active set as state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bilevel.problems.svm.follower import Follower
from bilevel.problems.svm.program import Array, KKTPoint


# A Newton step may overshoot to where the exponentials overflow; the method then gives up.
@np.errstate(over="ignore", invalid="ignore")
def active_set_newton(
    follower: Follower, start: KKTPoint, *, tolerance: float, max_iterations: int = 20
) -> KKTPoint | None:
    r"""Solve the follower's problem from a nearby solution by a primal-dual active-set method.

    Each iteration predicts the active set :math:`W = \{i : \mu_i > a_i^\top z - h_i\}` and takes
    one Newton step of the problem with the constraints of W as equalities,

    .. math::
        \begin{pmatrix} \nabla^2 \phi(z) & -A_W^\top \\ A_W & 0 \end{pmatrix}
        \begin{pmatrix} z^+ \\ \mu_W^+ \end{pmatrix} =
        \begin{pmatrix} \nabla^2 \phi(z) z - \nabla \phi(z) \\ h_W \end{pmatrix},

    which is a semismooth Newton step and converges in two to five iterations from the
    response at a neighbouring c. The multipliers off W are exactly zero. Where W would hold more
    constraints than there are variables, only the most violated one joins those with positive
    multipliers.

    Returns
    -------
    KKTPoint or None
        ``None`` where the method does not apply: the prediction cycles, or the solution is
        degenerate. An interior-point method then does.

    Notes
    -----
    Source: Hintermueller, Ito and Kunisch 2002, SIAM J. Optimization 13(3).
    """
    rows, bound = follower.program.train_rows, follower.bound
    z, mu = start
    width = len(z)
    for _ in range(max_iterations):
        active = _predict(rows @ z - bound, mu, width)
        if len(active) > width:
            return None
        hessian = follower.hessian(z)
        matrix = np.zeros((width + len(active), width + len(active)))
        matrix[:width, :width] = hessian
        matrix[:width, width:] = -rows[active].T
        matrix[width:, :width] = rows[active]
        target = np.concatenate([hessian @ z - follower.gradient(z), bound[active]])
        try:
            solution = np.linalg.solve(matrix, target)
        except np.linalg.LinAlgError:
            return None
        z, mu = solution[:width], np.zeros(len(bound))
        mu[active] = solution[width:]
        residual = follower.kkt_residual(KKTPoint(z, mu))
        if residual <= tolerance:
            return KKTPoint(z, np.maximum(mu, 0.0))
        if not np.isfinite(residual):
            return None
    return None


def _predict(slack: Array, mu: Array, width: int) -> npt.NDArray[np.intp]:
    active = np.flatnonzero(mu > slack)
    if len(active) <= width:
        return active
    kept = (mu > slack) & (mu > 0)
    return np.flatnonzero(kept | (slack == min(0.0, np.min(slack))))
