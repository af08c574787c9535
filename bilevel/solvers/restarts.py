"""Several starts, of which the best verified feasible answer is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bilevel.errors import BilevelError, OptionError
from bilevel.problem import BilevelProblem
from bilevel.solution import Solution
from bilevel.solvers.loop import FEASIBILITY
from bilevel.trees import Tree, rebuild
from bilevel.variables import Level


def best_of(
    solve: Callable[[Tree, Tree], Solution],
    problem: BilevelProblem,
    x0: Tree,
    y0: Tree,
    restarts: int,
    seed: int,
) -> Solution:
    """Solve from the given start and from ``restarts`` random ones.

    A random start draws each leaf from its domain where that is bounded, and otherwise perturbs the
    given start by normal noise of its size, so that seeds reproduce.
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
    solutions: list[Solution] = []
    failures: list[BilevelError] = []
    for start in starts:
        try:
            solutions.append(solve(*start))
        except BilevelError as error:
            failures.append(error)
    if not solutions:
        raise failures[0]
    best = min(solutions, key=_rank)
    feasible = sum(_rank(each)[0] == 0 for each in solutions)
    best.notes.append(
        f"best of {len(starts)} starts, {feasible} of them feasible"
        + (f", {len(failures)} failed (the first: {failures[0]})" if failures else "")
    )
    return best


def _sample(level: Level, tree: Tree, generator: torch.Generator) -> Tree:
    leaves = [
        domain.sample(leaf.detach(), generator)
        for leaf, domain in zip(level.leaves, level.domains, strict=True)
    ]
    return rebuild(tree, leaves)


def _rank(solution: Solution) -> tuple[int, float]:
    """Verified answers first, by their upper value, then those whose gap could not be measured.

    The others follow by how infeasible they are.
    """
    unverified = math.isnan(solution.lower_gap)
    gap = 0.0 if unverified else solution.lower_gap / (1.0 + abs(solution.lower_value))
    worst = max(solution.constraint_violation, gap)
    if worst <= FEASIBILITY:
        return int(unverified), solution.upper_value
    return 2, worst
