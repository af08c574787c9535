"""Several starts, of which the best verified feasible answer is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bilevel.calculus import Array
from bilevel.callbacks import Callback, Record
from bilevel.errors import BilevelError, OptionError
from bilevel.problem import BilevelProblem
from bilevel.solution import Solution
from bilevel.solvers.loop import FEASIBILITY, Run
from bilevel.trees import Tree, rebuild
from bilevel.variables import Level, flatten

#: Distance of two points, relative in each entry, below which two runs have met.
_SAME = 1e-6


def best_of(
    solve: Callable[[Tree, Tree, Callback], Solution],
    problem: BilevelProblem,
    x0: Tree,
    y0: Tree,
    restarts: int,
    seed: int,
) -> Solution:
    """Solve from the given start and from ``restarts`` random ones.

    A random start draws each leaf from its domain where that is bounded, and otherwise perturbs the
    given start by normal noise of its size, so that seeds reproduce. Seconds and gradient
    evaluations are those of all runs together.

    ``solve`` takes x, y and a callback, which ends a run that meets an earlier one.
    """
    upper = Level("x", x0, problem.upper_domain)
    lower = Level("y", y0, problem.lower_domain)
    if any(isinstance(leaf, torch.nn.Parameter) for leaf in upper.leaves + lower.leaves):
        raise OptionError(
            "restarts= needs plain tensors as x0 and y0: parameters train in place, so only one "
            "run can keep its result"
        )
    starts = [(x0, y0)]
    starts += [
        (
            _sample(upper, x0, torch.Generator().manual_seed(seed + 2 * index)),
            _sample(lower, y0, torch.Generator().manual_seed(seed + 2 * index + 1)),
        )
        for index in range(restarts)
    ]
    began = time.perf_counter()
    solutions: list[Solution] = []
    failures: list[BilevelError] = []
    paths = _Paths()
    for x, y in starts:
        try:
            solutions.append(solve(x, y, paths))
        except _Met:
            pass
        except BilevelError as error:
            failures.append(error)
    if not solutions:
        raise failures[0]
    best = min(solutions, key=_rank)
    outcomes = [f"{sum(_rank(s)[0] == 0 for s in solutions)} feasible"]
    if paths.meetings:
        outcomes.append(f"{paths.meetings} ended on the path of an earlier one")
    if failures:
        outcomes.append(f"{len(failures)} failed (the first: {failures[0]})")
    return replace(
        best,
        notes=[*best.notes, f"best of {len(starts)} starts: {', '.join(outcomes)}"],
        seconds=time.perf_counter() - began,
        gradient_evaluations=sum(run.state.gradient_evaluations for run in paths.runs),
    )


class _Met(Exception):
    """A run is where an earlier one has been."""


class _Paths(Callback):
    """The points of all runs so far; ends a run that would only repeat an earlier one.

    Steps that solve a whole problem, as those with exact responses do, remember little beside x and
    the responses y_γ and y_g, so two runs that share these after as many steps go on alike.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.meetings = 0
        self._visited: dict[int, list[Array]] = {}

    def on_start(self, run: Run) -> None:
        """Begin another path."""
        self.runs.append(run)

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Compare with the earlier paths after as many steps."""
        state = run.state
        if state.outer.needs_exact_response and not state.finished:
            assert state.original is not None
            assert state.original.values is not None
            point = flatten(state.upper.leaves + state.lower.leaves + state.original.values)
            visited = self._visited.setdefault(state.step, [])
            if any(np.allclose(point, other, rtol=_SAME, atol=_SAME) for other in visited):
                self.meetings += 1
                raise _Met
            visited.append(point)
        return None


def _sample(level: Level, tree: Tree, generator: torch.Generator) -> Tree:
    leaves = [
        domain.sample(leaf.detach(), generator)
        for leaf, domain in zip(level.leaves, level.domains, strict=True)
    ]
    return rebuild(tree, leaves)


def _rank(solution: Solution) -> tuple[int, float]:
    """Verified answers first, by their upper value, then those whose gap could not be measured.

    Then, at penalties that leave all with a gap, by the penalised value; infeasible ones last.
    """
    if not solution.constraint_violation <= FEASIBILITY:  # NaN is no feasibility
        return 3, solution.constraint_violation
    if math.isnan(solution.lower_gap):
        return 1, solution.upper_value
    if solution.lower_gap <= FEASIBILITY * (1.0 + abs(solution.lower_value)):
        return 0, solution.upper_value
    penalty = float(solution.history["penalty"].iloc[-1])
    return 2, solution.upper_value + penalty * solution.lower_gap
