"""From a network to a plan: BLOCC along a rising penalty, restarts, trimming, and a polish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from bilevel.callbacks import Callback, Record, as_callback
from bilevel.errors import OptionError
from bilevel.options import check_count, check_positive
from bilevel.problems.transport.assessment import Assessment
from bilevel.problems.transport.limits import PlanLimits
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.problem import transport_start
from bilevel.problems.transport.stages import LAST_PENALTY, Stages
from bilevel.problems.transport.tolls_search import TollPolish
from bilevel.solution import Solution
from bilevel.state import State

_LEAST_PENALTY = 1e-2


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
    own = [as_callback(callback) for callback in callbacks]
    checkpoints = None if checkpoints is None else Path(checkpoints)
    if resume and checkpoints is None:
        raise OptionError("resume=True needs the folder that holds the runs: give checkpoints=")
    if resume and checkpoints is not None and not any(checkpoints.glob("blocc-*.pt")):
        raise OptionError(f"resume=True: there are no runs in {checkpoints}; leave it out")
    stages = Stages(network, limits, steps, own, checkpoints, resume, progress)
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
