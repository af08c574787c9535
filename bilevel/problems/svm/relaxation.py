"""A lower bound on the bilevel optimum, and a certificate that it is attained."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import linprog

from bilevel.errors import ResponseError
from bilevel.problems.svm.interior_point import interior_point
from bilevel.problems.svm.linearised import JointProgram
from bilevel.problems.svm.program import Array, SVMProgram

_RANK_TOLERANCE = 1e-9
_REGULARISATION = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class RelaxedOptimum:
    """The optimum of the program in which the leader chooses z as well.

    Attributes
    ----------
    value : float
        f*, a lower bound on the bilevel optimum.
    c, z : array
        Where it is attained.
    is_bilevel_optimum : bool
        Whether the certificate holds: z is the follower's response to c, so that f* is the
        bilevel optimum itself. Otherwise f* is a bound only.
    """

    value: float
    c: Array
    z: Array
    is_bilevel_optimum: bool


def relaxed_optimum(program: SVMProgram, *, tolerance: float = 1e-9) -> RelaxedOptimum:
    r"""Minimise the upper objective over all feasible (c, z), a convex problem.

    .. math::
        f^* = \min_z \; F(z) + \bigl\| \max(1 - A z, c_{\min}) \bigr\|_2 .

    Let :math:`c = \max(1 - A z, c_{\min})` and let W be the constraints active at (c, z). If
    :math:`\sum_{i \in W} \lambda_i a_i = 0` for some :math:`\lambda > 0`, every z' that is feasible
    at c satisfies those constraints as equalities; if moreover these :math:`a_i` determine all
    predictions, the follower has no choice but z. Then g is irrelevant, and f* is the bilevel
    optimum. A linear program finds the largest set of constraints with such a :math:`\lambda`;
    there is one where the violators are not linearly separable.

    Directions that change no prediction (a constant feature beside the intercept) are left out
    of the minimisation; among the z that predict the same, the one of least g is returned, which
    is the follower's choice. Where training and validation examples are separable together, the
    infimum is not attained: :math:`10^{-9}` times half the mean squared margin is added, so that
    a minimiser exists, and f* is exact to about that.

    Parameters
    ----------
    program : SVMProgram
    tolerance : float
        Bound on the optimality conditions' residual.

    Raises
    ------
    ResponseError
        The minimisation did not reach its tolerance.
    """
    n = len(program.train_rows)
    stacked = np.vstack([program.train_rows, program.validation_rows])
    wide = stacked.shape[0] < stacked.shape[1]
    left, singular, right = np.linalg.svd(stacked, full_matrices=wide)
    rank = int(np.sum(singular > _RANK_TOLERANCE * singular[0]))

    # In the coordinates of the left singular vectors the margins have a mean square of |s|^2.
    scale = np.sqrt(len(stacked))
    rows = scale * left[:, :rank]
    relaxation = JointProgram(
        train_rows=rows[:n],
        validation_rows=rows[n:],
        curvature=np.full(rank, _REGULARISATION),
        slope=np.zeros(n),
        center=np.zeros(n),
        proximal=0.0,
        floor=program.floor,
    )
    end = interior_point(relaxation, *relaxation.start(), tolerance=tolerance)
    if not end.converged:
        raise ResponseError(
            f"the relaxation was solved to {end.residual:.3g} only (tolerance {tolerance:.3g}, "
            f"{end.iterations} iterations); standardise the features"
        )
    z = scale * (relaxation.split(end.x)[1] / singular[:rank]) @ right[:rank]
    silent = right[rank:].T
    z = z - silent @ np.linalg.lstsq(silent[:-1], z[:-1], rcond=None)[0]
    c = np.maximum(1 - program.train_rows @ z, program.floor)
    return RelaxedOptimum(
        value=program.upper_value(c, z),
        c=c,
        z=z,
        is_bilevel_optimum=_follower_has_no_choice(program.train_rows, c, z, rank),
    )


def _follower_has_no_choice(rows: Array, c: Array, z: Array, rank: int) -> bool:
    active = rows[rows @ z - (1 - c) <= 1e-8]
    if len(active) < rank:
        return False
    n, width = active.shape
    # Maximise sum(t) with 0 <= t <= 1, lambda = t + u, u >= 0: at the maximum, t_i is 1 where
    # some admissible lambda has lambda_i > 0, and 0 elsewhere.
    found = linprog(
        np.concatenate([-np.ones(n), np.zeros(n)]),
        A_eq=np.hstack([active.T, active.T]),
        b_eq=np.zeros(width),
        bounds=[(0.0, 1.0)] * n + [(0.0, None)] * n,
    )
    if found.x is None:
        raise ResponseError(f"the certificate's linear program failed: {found.message}")
    forced = active[found.x[:n] > 0.5]
    tolerance = _RANK_TOLERANCE * float(np.linalg.norm(active, 2))
    return len(forced) >= rank and int(np.linalg.matrix_rank(forced, tol=tolerance)) == rank
