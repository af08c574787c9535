"""Measuring along a run how flat f is in y near the lower level's solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bilevel.calculus import gradient
from bilevel.callbacks import Callback
from bilevel.diagnostics.flatness_fit import FlatnessFit, fit_flatness
from bilevel.diagnostics.point import measuring_state, require_upper_variable, respond
from bilevel.errors import (
    InfeasibleError,
    NonFiniteError,
    NotApplicableError,
    OptionError,
    ResponseError,
)
from bilevel.evaluation import Evaluation
from bilevel.lagrangian import lagrangian
from bilevel.options import check_count
from bilevel.schedules import penalty_at
from bilevel.state import State

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run

#: A measurement that fails is left out and counted; it must not end the run that it observes.
_FAILURES = (InfeasibleError, NonFiniteError, ResponseError)
_UNKNOWN = dict.fromkeys(("distance", "difference", "slope", "omitted"), math.nan)


class Flatness(Callback):
    r"""Collect, along a run, what the flatness definition is about.

    .. math:: |f(x, y_g(x)) - f(x, y)| \le c\,\|y_g(x) - y\|^\alpha + \delta

    Every so many steps the original response y_g and the perturbed responses at several penalties
    around the run's are solved for, which gives a range of distances. The run itself is not
    touched. :meth:`fit` then gives the constants.

    Parameters
    ----------
    every : int
        Steps between measurements; each costs ``1 + len(factors)`` exact responses.
    factors : sequence of float
        The penalties, in units of the run's.

    Attributes
    ----------
    points : pandas.DataFrame
        One row a response: ``run``, ``step``, ``penalty``, ``distance`` d = ‖y_g − y_γ‖,
        ``difference`` |f(x, y_g) − f(x, y_γ)|, ``slope`` ‖∇_y f(x, y_g)‖ and ``omitted``, the term
        of the penalised gradient that PBGD-Free leaves out. NaN where a response was not reached.

    Examples
    --------
    ::

        flatness = Flatness(every=100)
        solver.solve(problem, x0, y0, callbacks=[flatness])
        print(flatness.fit())
    """

    def __init__(self, every: int, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> None:
        check_count("every", every)
        if not factors or not all(0 < factor < math.inf for factor in factors):
            raise OptionError(f"factors={factors!r}, expected positive finite numbers")
        self.every = every
        self.factors = tuple(factors)
        self._rows: list[dict[str, float]] = []
        self._run = -1

    @property
    def points(self) -> pd.DataFrame:
        """What was measured so far, over all runs."""
        columns = ["run", "step", "penalty", "distance", "difference", "slope", "omitted"]
        return pd.DataFrame(self._rows, columns=columns)

    def fit(self) -> FlatnessFit:
        """The definition's constants over all points.

        Raises
        ------
        NotApplicableError
            If there are fewer than three distinct positive distances.
        """
        points = self.points
        measured = points.dropna()
        found = fit_flatness(measured["distance"].to_numpy(), measured["difference"].to_numpy())
        return replace(
            found,
            failures=len(points) - len(measured),
            largest_omitted=float(measured["omitted"].max()),
        )

    def delta(self, c: float, alpha: float) -> pd.Series[float]:
        r"""The least δ at each point of the run, for given c and α.

        .. math:: \hat\delta(x_t) = \max_\gamma\, [\,|f(x_t, y_g) - f(x_t, y_\gamma)|
            - c\,\|y_g - y_\gamma\|^\alpha\,]_+

        Its mean is what the convergence bound contains, its maximum is a δ for the whole run.
        """
        points = self.points.dropna()
        excess = points["difference"] - c * points["distance"] ** alpha
        least = excess.clip(lower=0.0).groupby([points["run"], points["step"]]).max()
        return least.rename("delta")

    # Collecting ---------------------------------------------------------------------------------

    def on_start(self, run: Run) -> None:
        """Refuse a run whose exact responses cannot be had."""
        if run.solver.accumulate > 1:
            raise NotApplicableError(
                f"Flatness measures one batch, and the solver accumulates {run.solver.accumulate}: "
                "measure a run with accumulate=1"
            )
        require_upper_variable(run.state)
        measuring_state(run.problem, run.state.upper, run.state.lower)
        self._run += 1

    def state_dict(self) -> dict[str, Any]:
        """The points, for a checkpoint."""
        return {"rows": self._rows, "run": self._run}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on with the run that the points are of."""
        self._rows, self._run = saved["rows"], saved["run"] - 1  # on_start counts it

    def on_step(self, run: Run) -> None:
        """Measure if it is time; the variables end as they were."""
        if run.state.step % self.every:
            return
        state = measuring_state(run.problem, run.state.upper, run.state.lower)
        penalty = penalty_at(run.state.schedule, run.state.step - 1)
        held = state.lower.values()
        try:
            self._measure(run, state, penalty)
        finally:
            state.lower.assign(held)

    def _measure(self, run: Run, state: State, penalty: float) -> None:
        problem, evaluation = run.problem, Evaluation(run.problem, state, *run.batches)
        start = state.lower.values()
        rows = [
            {"run": self._run, "step": run.state.step, "penalty": factor * penalty, **_UNKNOWN}
            for factor in self.factors
        ]
        self._rows += rows
        with suppress(*_FAILURES):
            track = respond(problem, state, state.response, 0.0, evaluation)
            y_g, f_g = state.lower.vector(), _upper_value(evaluation)
            with state.upper.frozen():
                slope = float(np.linalg.norm(gradient(evaluation.upper(), state.lower.leaves)))
            _, value_gradient = lagrangian(evaluation, track)
            for row in rows:
                state.lower.assign(start)
                with suppress(*_FAILURES):
                    weight = 1.0 / row["penalty"]
                    track = respond(problem, state, state.response, weight, evaluation)
                    _, perturbed = lagrangian(evaluation, track)
                    omitted = row["penalty"] * float(np.linalg.norm(perturbed - value_gradient))
                    row["distance"] = float(np.linalg.norm(state.lower.vector() - y_g))
                    row["difference"] = abs(_upper_value(evaluation) - f_g)
                    row["slope"], row["omitted"] = slope, omitted


@torch.no_grad()
def _upper_value(evaluation: Evaluation) -> float:
    return float(evaluation.upper())
