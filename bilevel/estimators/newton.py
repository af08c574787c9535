"""The exact response of many linear classifiers at once: Newton's method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

from bilevel.calculus import Array
from bilevel.errors import ResponseError
from bilevel.estimators.losses import Derivatives
from bilevel.estimators.machines import Machines
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.responses.base import Response
from bilevel.state import State, Track

#: Bound on the gradient's entries, relative to the mean size of the entries of X's column.
_TOLERANCE = 1e-12
#: A step with an old Hessian must reduce the gradient to this share for the Hessian to be kept.
_CONTRACTION = 0.01
#: Keeps a Hessian regular where no example curves the loss in the direction of the intercept.
_REGULAR = 1e-10
#: Armijo's condition: the share of the predicted decrease that a step achieves, up to rounding.
_DECREASE = 1e-4
_ROUNDING = 16 * np.finfo(np.float64).eps
#: Where rounding keeps the gradient from being halved for so many steps, its product with y, which
#: is what errors of the response enter the outer gradient by, may be as large as this.
_PATIENCE = 6
_ACCEPTABLE = 1e-10
_MOST_STEPS = 200
_MOST_HALVINGS = 60


class _Point(NamedTuple):
    """A point of the iteration, with what its objective and gradient are made of."""

    y: Array
    margins: Array
    training: Derivatives
    validation: Derivatives | None
    values: Array


@dataclass(eq=False)
class NewtonResponse(Response):
    r"""Newton's method with line search for :math:`w f + g` of :class:`Machines`.

    The classifiers are independent: each has a step length and a Hessian of d + 1 rows of its own,

    .. math:: X^\top \operatorname{diag}_i\bigl(a_{ji}\, \ell''(m_{ji})
        + w\, b_{ji}\, \ell_{\mathrm{val}}''(m_{ji})\bigr) X + \operatorname{diag}(e^\lambda / s_j).

    For the squared hinge, whose slope has a kink, this is a semismooth Newton method. A Hessian
    costs d times a gradient, so its Cholesky factor is kept, from step to step and from call to
    call, for as long as it reduces the gradient to a hundredth a step: the perturbed and the
    original response at one λ, which differ by O(w), share theirs.

    Parameters
    ----------
    machines : Machines
        The classifiers.
    """

    machines: Machines
    exact = True
    _factors: list[Array | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._factors = [None] * len(self.machines)

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Put the response into the lower level's leaf."""
        (leaf,) = state.lower.leaves
        values = leaf.detach().numpy()
        values[...], steps = self.solve(state.upper.vector(), values, weight)
        state.gradient_evaluations += steps

    def solve(self, log_penalties: Array, start: Array, weight: float = 0.0) -> tuple[Array, int]:
        """Minimise :math:`w f + g` in y.

        Parameters
        ----------
        log_penalties : array of shape (1,) or (d,)
            λ.
        start : array of shape (m, d + 1)
            The classifiers to begin with.
        weight : float
            w.

        Returns
        -------
        y : array of shape (m, d + 1)
        steps : int
            The number of steps.

        Raises
        ------
        ResponseError
            The gradient of a classifier did not vanish.
        """
        penalties = self.machines.penalties(log_penalties)
        scale = self.machines.column_sizes
        at = self._point(start, self.machines.margins(start), penalties, weight)
        unsolved = np.ones(len(start), dtype=bool)
        last = best = np.full(len(start), np.inf)
        waited = np.zeros(len(start), dtype=int)
        for steps in range(_MOST_STEPS):
            gradient = self._gradient(at, penalties, weight)
            residual = np.max(np.abs(gradient) / scale, axis=1)
            waited = np.where(residual < 0.5 * best, 0, waited + 1)
            best = np.minimum(residual, best)
            unsolved &= residual > _TOLERANCE
            error = np.sum(np.abs(gradient * at.y), axis=1)
            unsolved &= (waited < _PATIENCE) | (error > _ACCEPTABLE)
            if not np.any(unsolved):
                return at.y, steps
            stale = unsolved & (residual > _CONTRACTION * last)
            direction = self._direction(at, gradient, penalties, weight, unsolved, stale)
            slope = np.sum(direction * gradient, axis=1)
            at = self._search(at, direction, slope, penalties, weight)
            last = residual
        raise ResponseError(
            f"Newton's method left a relative gradient of {np.max(residual[unsolved]):.1e} in "
            f"{np.sum(unsolved)} of {len(start)} classifiers: put the features on a common scale, "
            "for instance with StandardScaler, or raise the least penalty"
        )

    def _point(self, y: Array, margins: Array, penalties: Array, weight: float) -> _Point:
        machines = self.machines
        training = machines.loss.derivatives(margins)
        values = np.sum(machines.training * training.value, axis=1)
        values += 0.5 * np.sum(penalties * y**2, axis=1)
        if weight == 0.0:
            return _Point(y, margins, training, None, values)
        validation = machines.validation_loss.derivatives(margins)
        values += weight * np.sum(machines.validation * validation.value, axis=1)
        return _Point(y, margins, training, validation, values)

    def _gradient(self, at: _Point, penalties: Array, weight: float) -> Array:
        machines = self.machines
        slopes = machines.training * at.training.slope
        if at.validation is not None:
            slopes += weight * machines.validation * at.validation.slope
        gradient: Array = (machines.labels * slopes) @ machines.rows + penalties * at.y
        return gradient

    def _direction(
        self,
        at: _Point,
        gradient: Array,
        penalties: Array,
        weight: float,
        wanted: NDArray[np.bool_],
        stale: NDArray[np.bool_],
    ) -> Array:
        """The Newton direction of the wanted classifiers, zero for the others."""
        direction = np.zeros_like(gradient)
        for j in map(int, np.flatnonzero(wanted)):
            factor = self._factors[j]
            if factor is None or stale[j]:
                factor = self._factors[j] = self._factor(at, j, penalties[j], weight)
            direction[j] = -dpotrs(factor, gradient[j])[0]
        return direction

    def _factor(self, at: _Point, j: int, penalties: Array, weight: float) -> Array:
        """The Cholesky factor of a classifier's Hessian."""
        machines = self.machines
        curvature = machines.training[j] * at.training.curvature[j]
        if at.validation is not None:
            curvature += weight * machines.validation[j] * at.validation.curvature[j]
        curved = curvature > 0.0
        roots = np.sqrt(curvature[curved])[:, None] * machines.rows[curved]
        hessian = roots.T @ roots
        hessian.flat[:: len(hessian) + 1] += penalties
        hessian[-1, -1] += _REGULAR
        factor: Array
        factor, failed_at = dpotrf(hessian, clean=False)
        if failed_at != 0:
            raise ResponseError(
                "the Hessian of a classifier is singular to working precision: put the features on "
                "a common scale, for instance with StandardScaler, or raise the least penalty"
            )
        return factor

    def _search(
        self, at: _Point, direction: Array, slope: Array, penalties: Array, weight: float
    ) -> _Point:
        """Halve each classifier's step until its objective decreases."""
        change = self.machines.labels * (direction @ self.machines.rows.T)
        length = np.ones((len(slope), 1))
        for _ in range(_MOST_HALVINGS):
            trial = self._point(
                at.y + length * direction, at.margins + length * change, penalties, weight
            )
            bound = at.values + _DECREASE * length[:, 0] * slope + _ROUNDING * np.abs(at.values)
            short = ~(trial.values <= bound)
            if not np.any(short):
                break
            length[short] *= 0.5
        return trial
