"""From a network to a plan: BLOCC along a rising penalty, restarts, trimming, and a polish."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bilevel.callbacks import Callback, Checkpoint, Record, as_callback
from bilevel.checkpoints import require_same_settings
from bilevel.errors import InfeasibleError, OptionError, ProblemError, ResponseError
from bilevel.options import check_count, check_positive
from bilevel.outer.difference_of_convex import DifferenceOfConvex
from bilevel.problems.transport.assessment import Assessment, assess
from bilevel.problems.transport.limits import Bounds, PlanLimits, bounds_of, require_attainable
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.problem import transport_problem, transport_start
from bilevel.problems.transport.tables import Array
from bilevel.problems.transport.tolls_search import TollPolish, polish_tolls
from bilevel.schedules import Geometric
from bilevel.solution import Solution
from bilevel.solvers.blocc import BLOCC
from bilevel.state import State

#: The penalty to which every run goes, in units of the mean fare: the two responses then differ
#: little, by some thousandths of the share.
LAST_PENALTY = 150.0
_LEAST_PENALTY = 1e-2
#: Shortfalls of a share, and relative excesses over a bound, that count as none: what the exact
#: assessment can tell.
NEGLIGIBLE = 1e-5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A plan, what it is worth, and how it came about.

    Attributes
    ----------
    assessment : Assessment
        The plan, and the passengers' exact answer to it: that of the last stage.
    blocc : Assessment
        The same of the capacities with which the best run of BLOCC itself ended, without the links
        that it left at the floor.
    trimmed, polished : Assessment or None
        The best plan after those stages, where they were asked for.
    search : TollPolish or None
        The polish's search on tolls; None also where that found no plan within the limits.
    solution : Solution
        The best run of BLOCC.
    runs : pandas.DataFrame
        One row a run of BLOCC: its first penalty, the exact profit and the violation of the plan
        at its end, and how often it went on with larger shares.
    stages : pandas.DataFrame
        By "BLOCC", "trimmed" and "polished": the same of the best plan after the stage, and the
        seconds that it took, on the clock and of the processor, exact assessments included.
    violation : float
        Largest excess over a ceiling or the budget, relative to it, or shortfall of a share: more
        than 1e-5 where no plan within the limits was found. Limits that capacities and flows could
        keep may still be out of reach, for passengers choose their routes themselves.
    """

    assessment: Assessment
    blocc: Assessment
    trimmed: Assessment | None
    polished: Assessment | None
    search: TollPolish | None
    solution: Solution
    runs: pd.DataFrame
    stages: pd.DataFrame
    violation: float

    def __repr__(self) -> str:
        stages = self.stages.to_string(float_format="{:.6g}".format)
        return f"{stages}\n\n{self.assessment}"


def plan_network(
    network: TransportNetwork,
    limits: PlanLimits | None = None,
    *,
    start: npt.ArrayLike | None = None,
    steps: int = 100,
    first_penalties: Sequence[float] = (0.1, 0.3),
    trim: bool = True,
    polish: int = 0,
    seed: int = 0,
    callbacks: Sequence[Callback | Callable[[Record, State], Any]] = (),
    checkpoints: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Plan:
    """Choose the capacities of a network's links for the largest profit.

    Parameters
    ----------
    network : TransportNetwork
    limits : PlanLimits, optional
        Bounds on capacities, a budget, least shares.
    start : float or array of shape (E,), optional
        Capacities to start from; by default those of :func:`transport_start`. What exceeds the
        limits is moved to them.
    steps : int
        Outer steps of a run of BLOCC, over which the penalty grows to 150 times the mean fare.
    first_penalties : sequence of float
        A run for each, from that penalty, in units of the mean fare; the best is kept, by
        the profit once it is trimmed, where it is to be. Where the penalty is small, the leader has
        all but full say in the passengers' answer, so that runs forget the capacities they start
        from; which local optimum they reach is decided by the penalty's path.
    trim : bool
        Reduce capacities to their use, leave out links that carry no more than the floor, and all
        where the rest loses money and no least share asks for it.
    polish : int
        Rounds of local search on tolls, from those of the best run, see :func:`polish_tolls`; 0 for
        none. The plan is assessed anew, and kept if it is better.
    seed : int
        Of the polish.
    callbacks : sequence
        Of every run of BLOCC, see :meth:`BLOCC.solve`; for instance :class:`TrueProfit`.
    checkpoints : path, optional
        A folder in which runs of BLOCC are saved, in the place of those of an earlier call.
    resume : bool
        Go on with the runs that are saved there; with the options that they were begun with.
    progress : bool, optional
        Show the progress of BLOCC and of the polish; by default in a terminal only.

    Raises
    ------
    OptionError, ProblemError, InfeasibleError
        An option is out of range, or as :meth:`PlanLimits.of`.
    ResponseError
        A response was not solved to its tolerance, in any run; where trimmed or polished capacities
        cannot be assessed, a warning says so and the plan before them is kept.
    """
    check_options(steps, first_penalties, polish, seed)
    if not isinstance(callbacks, Sequence):
        raise OptionError(f"callbacks={callbacks!r}, expected a list: callbacks=[...]")
    callbacks = [as_callback(callback) for callback in callbacks]
    checkpoints = None if checkpoints is None else Path(checkpoints)
    if resume and checkpoints is None:
        raise OptionError("resume=True needs the folder that holds the runs: give checkpoints=")
    if resume and checkpoints is not None and not any(checkpoints.glob("blocc-*.pt")):
        raise OptionError(f"resume=True: there are no runs in {checkpoints}; leave it out")
    stages = _Stages(network, limits, steps, callbacks, checkpoints, resume, progress)
    a, _ = transport_start(network, start)
    if checkpoints is not None and not resume:
        for file in checkpoints.glob("blocc-*.pt"):
            file.unlink()
    runs = [stages.run(index, a.numpy(), first) for index, first in enumerate(first_penalties)]
    taken = stages.taken()
    plans = [stages.trim(found) if trim else found for _, found in runs]
    number = max(range(len(runs)), key=lambda number: stages.rank(plans[number]))
    (solution, blocc), best = runs[number], plans[number]
    stages.note("BLOCC", blocc, taken)
    trimmed, polished, search = None, None, None
    if trim:
        trimmed = best
        stages.note("trimmed", trimmed, stages.taken())
    if polish > 0:
        polished, search = stages.polish(blocc, best, polish, seed)
        best = polished
        stages.note("polished", polished, stages.taken())
    return Plan(
        assessment=best,
        blocc=blocc,
        trimmed=trimmed,
        polished=polished,
        search=search,
        solution=solution,
        runs=pd.DataFrame(stages.runs),
        stages=pd.DataFrame.from_dict(stages.rows, orient="index"),
        violation=stages.violation(best),
    )


def check_options(steps: int, first_penalties: Sequence[float], polish: int, seed: int) -> None:
    """Refuse options of :func:`plan_network` that are out of range.

    Raises
    ------
    OptionError
        Naming the option.
    """
    check_count("steps", steps)
    check_count("polish", polish, least=0)
    check_count("seed", seed, least=0)
    if not isinstance(first_penalties, list | tuple) or not len(first_penalties):
        raise OptionError(
            f"first_penalties={first_penalties!r}, expected one penalty or more, such as (0.3,)"
        )
    for first in first_penalties:
        check_positive("first_penalties", first)
        if not _LEAST_PENALTY <= first < LAST_PENALTY:
            raise OptionError(
                f"first_penalties: found {first:g}, expected numbers of at least "
                f"{_LEAST_PENALTY:g} and less than the last, {LAST_PENALTY:g} (in units of the "
                "mean fare)"
            )


class _Stages:
    """The stages of a plan, each of which ends with an exact assessment."""

    def __init__(
        self,
        network: TransportNetwork,
        limits: PlanLimits | None,
        steps: int,
        callbacks: Sequence[Callback | Callable[[Record, State], Any]],
        checkpoints: Path | None,
        resume: bool,
        progress: bool | None,
    ) -> None:
        self.network, self.bounds = network, bounds_of(network, limits)
        fare = float(network.demand @ network.fare / network.demand.sum())
        self.mean_fare = fare if fare > 0 else 1.0  # without any, nothing pays
        self.steps, self.callbacks = steps, callbacks
        self.checkpoints, self.resume, self.progress = checkpoints, resume, progress
        self.runs: list[dict[str, float]] = []
        self.rows: dict[str, dict[str, float]] = {}
        self._began = time.perf_counter(), time.process_time()

    def run(self, index: int, start: Array, first: float) -> tuple[Solution, Assessment]:
        """BLOCC along a rising penalty; where shares fall short, on from there with larger ones."""
        saving: list[Callback] = []
        resume = None
        if self.checkpoints is not None:
            file = self.checkpoints / f"blocc-{index}.pt"
            settings = {
                "steps": self.steps, "first_penalty": first,
                "network, limits and start": self._digest(start),
            }  # fmt: skip
            saving = [_Settings(**settings), Checkpoint(file, every=10)]
            resume = file if self.resume and file.exists() else None
        last = LAST_PENALTY * self.mean_fare
        rising = Geometric(first * self.mean_fare, last, steps=self.steps)
        bounds, asked = self.bounds, self.bounds
        solution = self._solve(bounds, start, rising, self.steps, saving, resume)
        found = assess(self.network, bounds.built(solution.x.numpy()))
        solutions, plans = [solution], [found]
        while len(plans) <= 10:
            missing = bounds.least_share - plans[-1].share
            if missing.max() <= NEGLIGIBLE:
                break
            more = asked.least_share + 1.5 * np.maximum(missing, 0.0)
            asked = dataclasses.replace(asked, least_share=more)
            try:
                require_attainable(self.network, asked)
            except (InfeasibleError, ProblemError):
                break  # for what was asked for in addition
            constant = Geometric(last, last, steps=1)
            solutions.append(self._solve(asked, solutions[-1].x.numpy(), constant, 10))
            plans.append(assess(self.network, bounds.built(solutions[-1].x.numpy())))
        best = max(range(len(plans)), key=lambda number: self.rank(plans[number]))
        found = plans[best]
        self.runs.append(
            {
                "first_penalty": first,
                "profit": found.profit,
                "violation": self.violation(found),
                "repeats": len(plans) - 1,
            }
        )
        return _joined(solutions[: best + 1]), found

    def _solve(
        self,
        bounds: Bounds,
        start: Array,
        penalty: Geometric,
        steps: int,
        callbacks: Sequence[Callback] = (),
        resume: Path | None = None,
    ) -> Solution:
        problem = transport_problem(self.network, bounds)
        inside = np.clip(start, bounds.lower, bounds.upper)
        solver = BLOCC(penalty=penalty, outer=DifferenceOfConvex(extrapolation=0.9))
        return solver.solve(
            problem,
            *transport_start(self.network, inside),
            max_steps=steps,
            log_every=max(1, steps // 20),
            callbacks=[*self.callbacks, *callbacks],
            resume=resume,
            progress=self.progress,
        )

    def _digest(self, start: Array) -> str:
        """Of what a run begins with."""
        network, bounds = self.network, self.bounds
        arrays = [
            *(network.tail, network.head, network.travel_cost, network.construction_cost),
            *(network.origin, network.destination),
            *(network.demand, network.alternative_cost, network.fare),
            *(bounds.lower, bounds.upper, np.array(bounds.budget), bounds.least_share, start),
        ]
        return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()

    def trim(self, plan: Assessment) -> Assessment:
        """Capacities as they are used, twice: without the least used links others carry more."""
        for _ in range(2):
            plan = self._better(plan, self.bounds.built(plan.trimmed_capacity))
        # Nothing built loses nothing.
        return self._better(plan, np.zeros_like(plan.capacity)) if plan.profit < 0 else plan

    def polish(
        self, blocc: Assessment, plan: Assessment, rounds: int, seed: int
    ) -> tuple[Assessment, TollPolish | None]:
        """Local search on the tolls at BLOCC's capacities: trimmed ones would not determine any."""
        toll = np.where(self.bounds.built(blocc.load) > 0, blocc.toll, np.inf)
        found: TollPolish | None
        try:
            found = polish_tolls(
                self.network, toll, rounds=rounds, seed=seed, limits=self.bounds,
                progress=self.progress,
            )  # fmt: skip
        except ProblemError:
            found = None
        else:
            plan = self._better(plan, found.plan.load)
        return plan, found

    def taken(self) -> dict[str, float]:
        """The seconds since this was asked for last."""
        before, self._began = self._began, (time.perf_counter(), time.process_time())
        names = ("seconds", "cpu_seconds")
        return {
            name: now - then for name, now, then in zip(names, self._began, before, strict=True)
        }

    def note(self, stage: str, plan: Assessment, taken: dict[str, float]) -> None:
        """Note what a stage led to."""
        self.rows[stage] = {"profit": plan.profit, "violation": self.violation(plan), **taken}

    def rank(self, plan: Assessment) -> tuple[float, float]:
        """Plans within the limits first, by profit; others by what they break."""
        return -max(self.violation(plan), NEGLIGIBLE), plan.profit

    def violation(self, plan: Assessment) -> float:
        """See :class:`Plan`."""
        return self.bounds.violation(plan.capacity, plan.construction_cost, plan.share)

    def _better(self, plan: Assessment, capacity: Array) -> Assessment:
        try:
            other = assess(self.network, capacity)
        except ResponseError as error:
            warnings.warn(f"a plan was left out: {error}", stacklevel=4)
            return plan
        return max(plan, other, key=self.rank)


def _joined(solutions: list[Solution]) -> Solution:
    """The last of solutions of which each went on from the one before, counted from the first."""
    counts = {"step": "steps", "seconds": "seconds", "gradient_evaluations": "gradient_evaluations"}
    totals, histories = dict.fromkeys(counts, 0.0), []
    for each in solutions:
        counted = {name: each.history[name] + total for name, total in totals.items()}
        histories.append(each.history.assign(**counted))
        for name, attribute in counts.items():
            totals[name] += getattr(each, attribute)
    return dataclasses.replace(
        solutions[-1],
        history=pd.concat(histories, ignore_index=True).astype({"step": int}),
        steps=int(totals["step"]),
        seconds=totals["seconds"],
        gradient_evaluations=int(totals["gradient_evaluations"]),
    )


class _Settings(Callback):
    """What a run is to be resumed with."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, Any]:
        return self.settings

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        require_same_settings(saved, self.settings)
