"""The lower level's KKT system at a response, and how it moves with x (implicit functions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.calculus import Array, gradient, hessian, jacobian
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.program import lower_equalities, lower_inequalities
from bilevel.state import State, Track

Mask: TypeAlias = NDArray[np.bool_]

#: Relative size below which a slack, a multiplier, a residual or a singular value counts as zero.
ZERO = 1e-9
#: The same for curvatures along the active constraints.
_FLAT = 1e-12


@dataclass(frozen=True)
class LowerSystem:
    """Second derivatives and constraints of the lower level at a response.

    Attributes
    ----------
    second : (n + d, n + d) array
        Hessian of the lower Lagrangian in (x, y).
    inequalities : (m,) array
        Their values.
    inequality_jacobian, equality_jacobian : (m, n + d) and (p, n + d) array
        Of all constraints.
    mu, nu : (m,) and (p,) array
        Their multipliers.
    held, touching : (d,) array of bool
        Entries of y that a bound holds, and that touch a bound without pressing on it.
    """

    second: Array
    inequalities: Array
    inequality_jacobian: Array
    equality_jacobian: Array
    mu: Array
    nu: Array
    held: Mask
    touching: Mask

    @property
    def pressing(self) -> Mask:
        """The inequalities that have a multiplier."""
        strong: Mask = self.mu > ZERO * self.mu.max(initial=1.0)
        return strong


@dataclass(frozen=True)
class Motion:
    """How a response moves with x while its active constraints stay active.

    Attributes
    ----------
    jacobian : (d, n) array
        dy/dx, of least norm where it is not unique.
    defect : float
        What of the active constraints' motion in x no motion of y makes good, relative to it.
    least_curvature : float
        Least eigenvalue of the Lagrangian's Hessian along the active constraints.
    isolated : bool
        Whether that is positive beyond rounding.
    """

    jacobian: Array
    defect: float
    least_curvature: float
    isolated: bool


def lower_system(
    problem: BilevelProblem, state: State, track: Track, evaluation: Evaluation
) -> LowerSystem:
    """The system at a state whose leaves hold a response with the multipliers in the track."""
    leaves = state.upper.leaves + state.lower.leaves
    c, h = lower_inequalities(problem, state), lower_equalities(problem, state)
    mu, nu = _vector(track.inequality_multipliers, c), _vector(track.equality_multipliers, h)
    total = evaluation.lower(through_x=True)
    for multipliers, values in ((mu, c), (nu, h)):
        if len(values):
            total = total + torch.dot(multipliers, values)
    held, touching = _at_bounds(state, gradient(total, state.lower.leaves))
    return LowerSystem(
        second=hessian(total, leaves),
        inequalities=c.detach().cpu().numpy(),
        inequality_jacobian=jacobian(c, leaves),
        equality_jacobian=jacobian(h, leaves),
        mu=mu.cpu().numpy(),
        nu=nu.cpu().numpy(),
        held=held,
        touching=touching,
    )


def motion(system: LowerSystem, rows: Array) -> Motion:
    r"""D = dy/dx where the constraints with Jacobian ``rows`` (shape ``(a, n + d)``) stay active.

    With L the lower level's Lagrangian and A = ``rows``, D is the solution of the differentiated
    KKT system

    .. math:: \begin{pmatrix} L_{yy} & A_y^\top \\ A_y & 0 \end{pmatrix}
        \begin{pmatrix} D \\ \Lambda \end{pmatrix}
        = -\begin{pmatrix} L_{yx} \\ A_x \end{pmatrix},

    in the entries of y that no bound holds. It is solved in the null space of :math:`A_y`, so the
    constraints' gradients may be linearly dependent, and of any size beside :math:`L_{yy}`.
    """
    d = len(system.held)
    n = len(system.second) - d
    free = np.flatnonzero(~system.held)
    left, right = rows[:, n + free], -rows[:, :n]
    norms = np.linalg.norm(left, axis=1)
    scale = np.maximum(norms, _FLAT * np.linalg.norm(right, axis=1))[:, None]
    scale[scale == 0.0] = 1.0
    left, right = left / scale, right / scale
    curvature, coupling = system.second[n + free][:, n + free], system.second[n + free][:, :n]
    _, sizes, basis = np.linalg.svd(left)
    rank = int((sizes > ZERO * sizes.max(initial=1.0)).sum())
    null = basis[rank:].T
    particular = np.linalg.pinv(left, rcond=ZERO) @ right
    defect = np.abs(left @ particular - right).max(initial=0.0)
    within = null.T @ curvature @ null
    values, vectors = np.linalg.eigh(within)
    floor = _FLAT * float(np.abs(curvature).max(initial=1.0))
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=np.abs(values) > floor)
    step = vectors @ (
        inverse[:, None] * (vectors.T @ (null.T @ (coupling + curvature @ particular)))
    )
    moved = np.zeros((d, n))
    moved[free] = particular - null @ step
    return Motion(
        jacobian=moved,
        defect=float(defect / (1.0 + np.abs(right).max(initial=0.0))),
        least_curvature=float(values.min(initial=np.inf)),
        isolated=bool((values > floor).all()),
    )


def _at_bounds(state: State, reduced: Array) -> tuple[Mask, Mask]:
    """Entries of y that a bound holds, and entries that touch a bound without pressing on it.

    ``reduced`` is the gradient of the Lagrangian: the multipliers of the bounds.
    """
    low, high = state.lower.bounds()
    y = state.lower.vector()
    slack = ZERO * np.maximum(1.0, np.abs(y))
    at_bound = (y <= low + slack) | (y >= high - slack)
    pressing = np.abs(reduced) > ZERO * np.abs(reduced).max(initial=1.0)
    held = at_bound & (pressing | (low == high))
    return held, at_bound & ~held


def _vector(multipliers: Tensor | None, values: Tensor) -> Tensor:
    return torch.zeros_like(values.detach()) if multipliers is None else multipliers
