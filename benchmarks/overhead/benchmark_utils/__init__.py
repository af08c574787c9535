"""A library step and a hand-written step, measured side by side in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import psutil
import torch

from bilevel import BilevelProblem
from bilevel.solvers.base import PenaltySolver

Step = Callable[[], object]

#: CPU seconds of one block of steps, and number of pairs of blocks.
BLOCK, PAIRS = 0.05, 21


def compare(
    solver: PenaltySolver,
    problem: BilevelProblem,
    start: Callable[[], tuple],
    hand_written: Step,
    hand_x: list[torch.Tensor],
    long_run: int,
) -> dict[str, float]:
    """Time, memory and iterates of ``solver.step`` against the hand-written step.

    Both make the same steps from the same start, so that their iterates must agree.
    """
    torch.set_num_threads(1)
    copies = _copies_of_y(solver, problem, start)
    state = solver.init(problem, *start())

    def library() -> None:
        solver.step(problem, state)

    times = _paired_times(library, hand_written)
    ratios = [mine / other for mine, other in times]
    quantiles = statistics.quantiles(ratios, n=10)
    difference = max(
        float((mine - other).detach().abs().max())
        for mine, other in zip(state.upper.leaves, hand_x, strict=True)
    )
    tensors, resident = _growth(library, long_run)
    return {
        "ratio": statistics.median(ratios),
        "ratio_10": quantiles[0],
        "ratio_90": quantiles[-1],
        "library_us": 1e6 * statistics.median(mine for mine, _ in times),
        "hand_written_us": 1e6 * statistics.median(other for _, other in times),
        "difference": difference,
        "further_copies_of_y": copies,
        "growth_steps": long_run,
        "tensor_growth_bytes": tensors,
        "resident_growth_kib": resident / 1024,
    }


def _copies_of_y(
    solver: PenaltySolver, problem: BilevelProblem, start: Callable[[], tuple]
) -> float:
    """What a state without moments holds beside one x and one y, in units of y."""
    plain = partial(torch.optim.SGD, lr=1e-6)
    solver = replace(solver, upper_optimizer=plain, lower_optimizer=plain)
    before = _live_bytes()
    state = solver.init(problem, *start())
    solver.step(problem, state)
    state.upper.clear_gradients()
    state.lower.clear_gradients()
    state.record.clear()
    x, y = (sum(leaf.nbytes for leaf in level.leaves) for level in (state.upper, state.lower))
    return (_live_bytes() - before - x - y) / y


def _paired_times(library: Step, hand_written: Step) -> list[tuple[float, float]]:
    """CPU seconds a step, in alternating blocks; the order changes from pair to pair."""
    count = 1
    while (spent := _time(library, count) + _time(hand_written, count)) < BLOCK / 2:
        count *= 2
    count = max(1, round(count * 2 * BLOCK / spent))
    times = []
    for pair in range(PAIRS):
        if pair % 2:
            times.append((_time(library, count) / count, _time(hand_written, count) / count))
        else:
            other = _time(hand_written, count) / count
            times.append((_time(library, count) / count, other))
    return times


def _time(step: Step, count: int) -> float:
    # The process's own time: other programs on the machine do not enter.
    begin = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - begin


def _growth(step: Step, steps: int) -> tuple[int, int]:
    """Growth of the live tensors and of the resident memory, in bytes, over so many steps."""
    step()
    tensors, resident = _live_bytes(), psutil.Process().memory_info().rss
    for _ in range(steps):
        step()
    return _live_bytes() - tensors, psutil.Process().memory_info().rss - resident


def _live_bytes() -> int:
    """Bytes of all live tensors, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
