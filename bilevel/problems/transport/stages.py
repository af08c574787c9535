"""The stages of a plan: runs of BLOCC, trimming and the polish, each assessed exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bilevel.callbacks import Callback, Checkpoint, Settings
from bilevel.errors import InfeasibleError, ProblemError, ResponseError
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

#: The penalty to which every run goes, in units of the mean fare: the two responses then differ
#: little, by some thousandths of the share.
LAST_PENALTY = 150.0
#: Shortfalls of a share, and relative excesses over a bound, that count as none: what the exact
#: assessment can tell.
NEGLIGIBLE = 1e-5


class Stages:
    """The stages of a plan, each of which ends with an exact assessment."""

    def __init__(
        self,
        network: TransportNetwork,
        limits: PlanLimits | None,
        steps: int,
        callbacks: Sequence[Callback],
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
            saving = [Settings(settings), Checkpoint(file, every=10)]
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
        found = self.bounds.excesses(plan.capacity, plan.construction_cost, plan.share)
        return max(0.0, float(found.max()))

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
