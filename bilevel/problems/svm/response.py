"""The follower's responses: to its own objective, and to the leader's perturbation of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.errors import InfeasibleError, OptionError, ResponseError, VariableError
from bilevel.problems.svm.active_set import active_set_newton
from bilevel.problems.svm.feasibility import nearest_feasible
from bilevel.problems.svm.follower import Follower
from bilevel.problems.svm.interior_point import interior_point
from bilevel.problems.svm.program import Array, KKTPoint, SVMProgram

# A residual from which the active set can be read off.
_POLISHABLE = 1e-3


@dataclasses.dataclass(frozen=True)
class SVMResponse:
    r"""Exact lower-level responses of an :class:`SVMProgram`, with their multipliers.

    :meth:`original` minimises g, :meth:`perturbed` minimises :math:`F / \gamma + g`. Warm-started,
    a primal-dual active-set method finds either in a few Newton steps; cold, or where that method
    cycles, an interior-point method does. The envelope theorem gives from their multipliers the
    gradient of the penalised objective
    :math:`\Phi_\gamma(c) = \|c\| + \min_z [F(z) + \gamma g(z)] - \gamma v(c)`,

    .. math::
        \nabla \Phi_\gamma(c) = \frac{c}{\|c\|} + \gamma (\mu_g - \mu_\gamma),

    both multipliers at the scale of g.

    Parameters
    ----------
    program : SVMProgram
    tolerance : float
        Bound on the optimality conditions' residual, relative to the largest multiplier if that
        exceeds 1.

    Raises
    ------
    OptionError
        ``tolerance`` is not positive.
    """

    program: SVMProgram
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise OptionError(f"tolerance={self.tolerance!r}; expected a positive number")

    def original(self, c: Array, warm: KKTPoint | None = None) -> KKTPoint:
        r"""Minimise :math:`\tfrac12 \|w\|^2` subject to :math:`A z \ge 1 - c`.

        While :math:`\max_{y_i = 1} (1 - c_i) \le \min_{y_i = -1} (c_i - 1)`, every intercept
        between these two satisfies all constraints with w = 0. The follower does not care which,
        so the leader chooses (the optimistic convention): the intercept of least validation
        loss. Otherwise :math:`w \ne 0`, constraints of both classes are active, and they
        determine b.

        Parameters
        ----------
        c : array of shape (n,)
        warm : KKTPoint, optional
            The response at a nearby c.

        Raises
        ------
        InfeasibleError
            No hyperplane satisfies the constraints; ``certificate`` is :math:`\lambda \ge 0`
            with :math:`A^\top \lambda = 0` and :math:`\lambda^\top c < \lambda^\top 1`.
        ResponseError
            c is feasible, but the optimality conditions were not met to ``tolerance``: c is on the
            boundary of the feasible set, or the numbers leave double precision.
        VariableError
            c has the wrong shape or is not finite.
        """
        self._check(c)
        constant = self._constant_classifier(c)
        if constant is not None:
            return constant
        return self._solve(Follower(self.program, 1 - c, 0.0), warm)

    def perturbed(self, c: Array, penalty: float, warm: KKTPoint | None = None) -> KKTPoint:
        r"""Minimise :math:`F(z) / \gamma + \tfrac12 \|w\|^2` subject to :math:`A z \ge 1 - c`.

        Parameters
        ----------
        c : array of shape (n,)
        penalty : float
            :math:`\gamma > 0`.
        warm : KKTPoint, optional
            The response at a nearby c.

        Raises
        ------
        InfeasibleError, ResponseError, VariableError
            As :meth:`original`.
        OptionError
            ``penalty`` is not positive and finite.
        """
        self._check(c)
        if not 0 < penalty < np.inf:
            raise OptionError(f"penalty={penalty!r}; expected a positive, finite number")
        return self._solve(Follower(self.program, 1 - c, 1 / penalty), warm)

    def project(self, c: Array, margin: float = 0.0) -> Array:
        r"""Move c to the nearest c' in the 2-norm for which c' - margin is feasible.

        A small margin such as 1e-7 moves a c beyond the boundary of the feasible set, or on it,
        to where the multipliers are bounded, and leaves every other c as it is. No entry falls.

        Parameters
        ----------
        c : array of shape (n,)
        margin : float
            How much every constraint may be tightened and leave c' feasible.
        """
        self._check(c)
        return c + nearest_feasible(self.program.train_rows, 1 - c + margin).shortfall

    def _constant_classifier(self, c: Array) -> KKTPoint | None:
        positive = self.program.train_rows[:, -1] > 0
        lowest, highest = np.max(1 - c[positive]), np.min(c[~positive] - 1)
        if lowest > highest:
            return None
        z = np.zeros(self.program.train_rows.shape[1])
        z[-1] = np.clip(self._best_constant(), lowest, highest)
        return KKTPoint(z, np.zeros(len(c)))

    def _best_constant(self) -> float:
        """The intercept that minimises the validation loss where w = 0."""
        labels = self.program.validation_rows[:, -1]
        with np.errstate(divide="ignore"):
            return float(0.5 * np.log(np.divide(np.sum(labels > 0), np.sum(labels < 0))))

    def _solve(self, follower: Follower, warm: KKTPoint | None) -> KKTPoint:
        if warm is not None:
            point = active_set_newton(follower, warm, tolerance=self.tolerance)
            if point is not None:
                return point
        point = self._solve_cold(follower, np.zeros(self.program.train_rows.shape[1]))
        if point is None:
            point = self._solve_cold(follower, self._feasible_start(follower))
        if point is None:
            raise self._explain(follower)
        return point

    def _solve_cold(self, follower: Follower, start: Array) -> KKTPoint | None:
        end = interior_point(follower, start, tolerance=self.tolerance)
        point = KKTPoint(end.x, end.mu)
        if end.residual < _POLISHABLE:
            exact = active_set_newton(follower, point, tolerance=self.tolerance)
            if exact is not None:
                return exact
        return point if end.converged else None

    def _feasible_start(self, follower: Follower) -> Array:
        nearest = nearest_feasible(self.program.train_rows, follower.bound)
        if np.any(nearest.shortfall > 0):
            raise InfeasibleError(
                "no hyperplane keeps every margin violation within c: c lies "
                f"{np.linalg.norm(nearest.shortfall):.3g} outside the feasible set; move it to "
                "project(c, margin=1e-7), or use certificate @ c >= certificate.sum() as a cut",
                certificate=nearest.shortfall / np.sum(nearest.shortfall),
            )
        return nearest.z

    def _explain(self, follower: Follower) -> ResponseError:
        margin = nearest_feasible(self.program.train_rows, follower.bound + 1e-7)
        if np.any(margin.shortfall > 0):
            return ResponseError(
                f"the lower level was not solved to {self.tolerance:.3g}: c lies on the boundary "
                "of the feasible set, where its multipliers are unbounded; evaluate at "
                "project(c, margin=1e-7)"
            )
        return ResponseError(
            f"the lower level was not solved to {self.tolerance:.3g}: its multipliers or the "
            "validation losses of the hyperplanes that c admits exceed what double precision "
            "resolves; standardise the features, or start from a larger c"
        )

    def _check(self, c: Array) -> None:
        expected = (len(self.program.train_rows),)
        if c.shape != expected or not np.all(np.isfinite(c)):
            raise VariableError(
                f"c has shape {c.shape} and {np.sum(~np.isfinite(c))} entries that are not finite; "
                f"expected {expected}, one finite bound for each training example"
            )
