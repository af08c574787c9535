"""From a network to a plan: BLOCC along a rising penalty, restarts, trimming, and a polish."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bilevel.callbacks import Callback, Checkpoint, Record
from bilevel.errors import InfeasibleError, OptionError, ProblemError
from bilevel.options import check_count, check_positive
from bilevel.outer.difference_of_convex import DifferenceOfConvex
from bilevel.problems.transport.assessment import Assessment, assess
from bilevel.problems.transport.limits import PlanLimits
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.problem import transport_problem, transport_start
from bilevel.problems.transport.tolls_search import TollPolish, polish_tolls
from bilevel.schedules import Geometric
from bilevel.solution import Solution
from bilevel.solvers.blocc import BLOCC
from bilevel.state import State

#: The penalty towards which every run goes: the two responses then differ by a few thousandths.
LAST_PENALTY = 500.0
#: Shortfalls of a share, and excesses over a bound, that count as none.
NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A plan, what it is worth, and how it came about.

    Attributes
    ----------
    assessment : Assessment
        The plan, and the passengers' exact answer to it: that of the last stage.
    blocc : Assessment
        The same of the capacities with which the best run of BLOCC itself ended.
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
        Largest excess over a ceiling or the budget, in their units, or shortfall of a share: more
        than 1e-6 where no plan within the limits was found. Limits that capacities and flows could
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
    first_penalties: Sequence[float] = (0.3, 1.0),
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
        Capacities to start from; by default a quarter of all demand, spread evenly over the links:
        scarce ones, since ample ones carry no toll that tells links apart.
    steps : int
        Outer steps of a run of BLOCC, over which the penalty grows towards 500.
    first_penalties : sequence of float
        A run for each, from that penalty; the best is kept. Where the penalty is small, the leader
        has all but full say in the passengers' answer, so that runs forget the capacities they
        start from; which local optimum they reach is decided by the penalty's path.
    trim : bool
        Reduce capacities to their use, and leave out links that carry no more than the floor.
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
        Show BLOCC's progress; by default in a terminal only.

    Raises
    ------
    OptionError, ProblemError, InfeasibleError
        An option is out of range, or as :meth:`PlanLimits.of`.
    ResponseError
        A response was not solved to its tolerance.
    """
    check_count("steps", steps)
    check_count("polish", polish, least=0)
    check_count("seed", seed, least=0)
    if not isinstance(first_penalties, Sequence) or not len(first_penalties):
        raise OptionError(
            f"first_penalties={first_penalties!r}, expected one penalty or more, such as (1.0,)"
        )
    for first in first_penalties:
        check_positive("first_penalties", first)
    if not isinstance(callbacks, Sequence):
        raise OptionError(f"callbacks={callbacks!r}, expected a list: callbacks=[...]")
    limits = PlanLimits() if limits is None else limits
    if not isinstance(limits, PlanLimits):
        raise OptionError(f"limits={limits!r}, expected PlanLimits(...)")
    checkpoints = None if checkpoints is None else Path(checkpoints)
    if resume and checkpoints is None:
        raise OptionError("resume=True needs the folder that holds the runs: give checkpoints=")
    stages = _Stages(network, limits, steps, callbacks, checkpoints, resume, progress)
    if start is None:
        start = 0.25 * network.demand.sum() / len(network.tail)
    try:
        start = np.asarray(start, dtype=np.float64)
        np.broadcast_to(start, len(network.tail))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"start={start!r}, expected a number, or one for each of {len(network.tail)} links"
        ) from error
    if checkpoints is not None and not resume:
        for file in checkpoints.glob("blocc-*.pt"):
            file.unlink()
    runs = [stages.run(index, start, first) for index, first in enumerate(first_penalties)]
    solution, blocc = max(runs, key=lambda run: stages.rank(run[1]))
    stages.end("BLOCC", blocc)
    best, trimmed, polished, search = blocc, None, None, None
    if trim:
        best = trimmed = stages.trim(best)
    if polish > 0:
        polished, search = stages.polish(blocc, best, polish, seed)
        best = polished
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


class _Stages:
    """The stages of a plan, each of which ends with an exact assessment."""

    def __init__(
        self,
        network: TransportNetwork,
        limits: PlanLimits,
        steps: int,
        callbacks: Sequence[Callback | Callable[[Record, State], Any]],
        checkpoints: Path | None,
        resume: bool,
        progress: bool | None,
    ) -> None:
        self.network, self.limits, self.bounds = network, limits, limits.of(network)
        self.steps, self.callbacks = steps, callbacks
        self.checkpoints, self.resume, self.progress = checkpoints, resume, progress
        self.runs: list[dict[str, float]] = []
        self.rows: dict[str, dict[str, float]] = {}
        self._began = time.perf_counter(), time.process_time()

    def run(self, index: int, start: npt.ArrayLike, first: float) -> tuple[Solution, Assessment]:
        """BLOCC along a rising penalty; where shares fall short, on from there with larger ones."""
        file = None if self.checkpoints is None else self.checkpoints / f"blocc-{index}.pt"
        rising = Geometric(first, LAST_PENALTY, steps=self.steps)
        bounds = self.bounds
        solution = self._solve(self.limits, start, rising, self.steps, file)
        histories = [solution.history]
        found = assess(self.network, bounds.built(solution.x.numpy()))
        asked, repeats = bounds.least_share, 0
        while repeats < 5:
            missing = bounds.least_share - found.share
            if missing.max() <= NEGLIGIBLE:
                break
            asked = asked + 1.5 * np.maximum(missing, 0.0)
            limits = dataclasses.replace(self.limits, least_share=asked)
            try:
                limits.of(self.network)
            except (InfeasibleError, OptionError, ProblemError):
                break  # for what was asked for in addition
            constant = Geometric(LAST_PENALTY, LAST_PENALTY, steps=1)
            solution = self._solve(limits, solution.x.numpy(), constant, 10, None)
            found = assess(self.network, bounds.built(solution.x.numpy()))
            done = histories[-1][["step", "seconds"]].iloc[-1]
            more = solution.history
            histories.append(more.assign(**{name: more[name] + done[name] for name in done.index}))
            repeats += 1
        self.runs.append(
            {
                "first_penalty": first,
                "profit": found.profit,
                "violation": self.violation(found),
                "repeats": repeats,
            }
        )
        history = pd.concat(histories, ignore_index=True).astype({"step": int})
        steps = int(history["step"].iloc[-1])
        return dataclasses.replace(solution, history=history, steps=steps), found

    def _solve(
        self,
        limits: PlanLimits,
        start: npt.ArrayLike,
        penalty: Geometric,
        steps: int,
        file: Path | None,
    ) -> Solution:
        problem = transport_problem(self.network, limits)
        inside = np.clip(start, self.bounds.lower, self.bounds.upper)
        solver = BLOCC(penalty=penalty, outer=DifferenceOfConvex(extrapolation=0.9))
        return solver.solve(
            problem,
            *transport_start(self.network, inside),
            max_steps=steps,
            callbacks=[*self.callbacks, *([] if file is None else [Checkpoint(file, every=10)])],
            resume=file if self.resume and file is not None and file.exists() else None,
            progress=self.progress,
        )

    def trim(self, plan: Assessment) -> Assessment:
        """Capacities as they are used, twice: without the least used links others carry more."""
        for _ in range(2):
            capacity = self.bounds.built(plan.trimmed_capacity)
            plan = self._better(plan, assess(self.network, capacity))
        self.end("trimmed", plan)
        return plan

    def polish(
        self, blocc: Assessment, plan: Assessment, rounds: int, seed: int
    ) -> tuple[Assessment, TollPolish | None]:
        """Local search on the tolls at BLOCC's capacities: trimmed ones would not determine any."""
        toll = np.where(self.bounds.built(blocc.load) > 0, blocc.toll, np.inf)
        found: TollPolish | None
        try:
            found = polish_tolls(self.network, toll, rounds=rounds, seed=seed, limits=self.limits)
        except ProblemError:
            found = None
        else:
            plan = self._better(plan, assess(self.network, found.plan.load))
        self.end("polished", plan)
        return plan, found

    def end(self, stage: str, plan: Assessment) -> None:
        """Note what a stage led to, and how long it took."""
        now = time.perf_counter(), time.process_time()
        self.rows[stage] = {
            "profit": plan.profit,
            "violation": self.violation(plan),
            "seconds": now[0] - self._began[0],
            "cpu_seconds": now[1] - self._began[1],
        }
        self._began = now

    def rank(self, plan: Assessment) -> tuple[float, float]:
        """Plans within the limits first, by profit; others by what they break."""
        return -max(self.violation(plan), NEGLIGIBLE), plan.profit

    def violation(self, plan: Assessment) -> float:
        """See :class:`Plan`."""
        bounds = self.bounds
        over = float(np.max(plan.capacity - bounds.upper))
        return max(
            0.0,
            over,
            plan.construction_cost - bounds.budget,
            float(np.max(bounds.least_share - plan.share)),
        )

    def _better(self, plan: Assessment, other: Assessment) -> Assessment:
        return max(plan, other, key=self.rank)
