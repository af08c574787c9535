"""Runs each case to its end, then to a SIGKILL, then on from the checkpoint, in three processes.

Called with a folder, into which it writes CASE.whole and CASE.resumed. The processes are forked
before any of them computes, so they share imports and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # optimisers import it at their first step
from networks import batches, classification, network
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from toys import coupled_toy, scalar, value_function_toy

from bilevel import (
    BLOCC,
    PBGD,
    BilevelProblem,
    Exact,
    MaxMin,
    PBGDFree,
    QuasiNewton,
    Solution,
    checkpoints,
)
from bilevel.callbacks import Callback, Checkpoint, EarlyStopping
from bilevel.schedules import Geometric

ADAM = partial(torch.optim.Adam, lr=0.02)
DECAY = partial(torch.optim.lr_scheduler.StepLR, step_size=4, gamma=0.7)


def data(seed: int) -> TensorDataset:
    inputs, labels = zip(*batches(seed, count=3, size=7), strict=True)
    return TensorDataset(torch.cat(inputs), torch.cat(labels))


def loader(seed: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(data(seed), batch_size=5, **options)


class Permuted:
    """A loader written by hand, that shuffles with the generators of NumPy and of Python."""

    def __init__(self, seed: int) -> None:
        self.batches = batches(seed, count=6)

    def __iter__(self):
        yield from (self.batches[i] for i in np.random.permutation(6))  # noqa: NPY002
        yield from random.sample(self.batches, 2)


def quadratic() -> tuple[BilevelProblem, Any, Any]:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1).square().sum() + (a @ x - y["w"]).abs().sqrt().sum(),
        lower=lambda x, y: (y["w"] - a @ x).square().sum() + 0.1 * y["w"].square().sum(),
    )
    return problem, torch.zeros(3, dtype=torch.float64), {"w": torch.ones(4, dtype=torch.float64)}


def deterministic() -> Callable[..., Solution]:
    problem, x0, y0 = quadratic()
    return partial(PBGD(penalty=4.0, upper_lr=0.01, lower_lr=0.1).solve, problem, x0, y0)


def stochastic(solver: Any, upper: Any, lower: Any, dropout: float = 0.3) -> Any:
    torch.manual_seed(7)
    net = network(seed=7, dropout=dropout)
    return partial(
        solver.solve, classification(net), *net.levels(), upper_batches=upper, lower_batches=lower
    )


def everything_at_once() -> Callable[..., Solution]:
    """Dropout, shuffling by the global generator, Adam, schedulers, a growing penalty."""
    solver = PBGDFree(
        penalty=Geometric(1.0, 50.0, steps=15), inner_steps=2, clip_norm=1.0,
        upper_optimizer=ADAM, lower_optimizer=ADAM, upper_scheduler=DECAY, lower_scheduler=DECAY,
    )  # fmt: skip
    return stochastic(solver, loader(1, shuffle=True), loader(2, shuffle=True))


def own_generators() -> Callable[..., Solution]:
    """PBGD's y_g with its own Adam; loaders that share a generator, one holds it in its sampler."""
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(data(2), replacement=True, generator=generator)
    solver = PBGD(penalty=3.0, inner_steps=2, upper_optimizer=ADAM, lower_optimizer=ADAM)
    return stochastic(
        solver, loader(1, shuffle=True, generator=generator), loader(2, sampler=sampler)
    )


def joint_accumulating() -> Callable[..., Solution]:
    solver = PBGD(penalty=3.0, accumulate=3, variant="joint", upper_lr=0.1, lower_optimizer=ADAM)
    return stochastic(solver, loader(1, shuffle=True), batches(2, count=4))


def other_generators() -> Callable[..., Solution]:
    np.random.seed(11)  # noqa: NPY002
    random.seed(12)
    solver = PBGDFree(penalty=3.0, upper_lr=0.1, lower_lr=0.1)
    return stochastic(solver, Permuted(1), Permuted(2), dropout=0.0)


def multipliers() -> Callable[..., Solution]:
    response = MaxMin(steps=3, lr=0.2, dual_lr=0.2, primal_steps=2, accelerated=True)
    solver = BLOCC(penalty=5.0, upper_lr=0.01, response=response)
    return partial(solver.solve, coupled_toy(4, 1.0), scalar(1.0), scalar(0.5))


def upper_multipliers() -> Callable[..., Solution]:
    """The augmented Lagrangian's multipliers of upper constraints."""
    problem = BilevelProblem(
        upper=lambda x, y: (x - 3) ** 2 + (y - 3) ** 2,
        lower=lambda x, y: (y - x) ** 2,
        upper_constraints=lambda x, y: (x + y - 2).reshape(1),
    )
    solver = PBGD(penalty=5.0, upper_lr=0.01, lower_lr=0.1)
    return partial(solver.solve, problem, scalar(0.0), scalar(0.5))


def sqp() -> Callable[..., Solution]:
    return partial(BLOCC().solve, coupled_toy(4, 1.0), scalar(1.0), scalar(0.5))


def quasi_newton() -> Callable[..., Solution]:
    solver = PBGD(outer=QuasiNewton(), response=Exact(), penalty=Geometric(1.0, 1e3, steps=18))
    return partial(solver.solve, value_function_toy(), scalar(2.0), scalar(-1.0))


def polished() -> Callable[..., Solution]:
    """Killed while the second solver is at work."""
    problem, x0, y0 = quadratic()
    polish = PBGD(penalty=4.0, upper_lr=0.01, lower_lr=0.1)
    solver = PBGDFree(penalty=4.0, upper_lr=0.01, lower_lr=0.1, polish=polish, polish_below=1e3)
    return partial(solver.solve, problem, x0, y0)


def early_stopping() -> Callable[..., Solution]:
    problem, x0, y0 = quadratic()
    solve = PBGD(penalty=4.0, upper_lr=0.01, lower_lr=0.1).solve

    def stopping(callbacks: list[Callback], **options: Any) -> Solution:
        patient = EarlyStopping("upper", patience=6, min_delta=10.0)
        return solve(problem, x0, y0, callbacks=[*callbacks, patient], **options)

    return stopping


#: By name: the run, the step at which it is killed, and the steps between checkpoints.
CASES: dict[str, tuple[Callable[[], Callable[..., Solution]], int, int]] = {
    "deterministic": (deterministic, 14, 5),
    "everything at once": (everything_at_once, 13, 5),
    "own generators": (own_generators, 14, 4),
    "joint, accumulating": (joint_accumulating, 11, 3),
    "other generators": (other_generators, 14, 4),
    "multipliers": (multipliers, 14, 5),
    "upper multipliers": (upper_multipliers, 14, 5),
    "sqp": (sqp, 3, 1),
    "quasi-newton": (quasi_newton, 12, 5),
    "polished": (polished, 14, 5),
    "early stopping": (early_stopping, 9, 4),
    "killed while a checkpoint is written": (everything_at_once, 15, 5),
}
STEPS = 20


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any) -> None:
        if run.state.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(name: str, folder: Path, kind: str) -> None:
    make, killed_at, every = CASES[name]
    file = folder / f"{name}.checkpoint"
    callbacks: list[Callback] = [Checkpoint(file, every=every)]
    options: dict[str, Any] = {}
    solve = make()
    if kind == "whole":
        callbacks = []
    elif kind == "resumed":
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(999)  # a new process knows nothing of the old one's generators
        options["resume"] = file
    elif name == "killed while a checkpoint is written":
        writes = iter(range(killed_at // every - 1))  # the last of them does not end
        replace = os.replace
        checkpoints.os.replace = lambda *paths: (
            replace(*paths) if next(writes, None) is not None else os.kill(os.getpid(), 9)
        )
    else:
        # Before the checkpoint in the list: a checkpoint of the same step is not written either.
        callbacks.insert(0, Kill(killed_at))
    solution = solve(
        max_steps=STEPS, tolerance=0.0, progress=False, log_every=2, callbacks=callbacks, **options
    )
    torch.save(
        {
            "x": [leaf.detach() for leaf in leaves(solution.x)],
            "y": [leaf.detach() for leaf in leaves(solution.y)],
            "history": solution.history.drop(columns="seconds").to_dict("list"),
            "end": (
                str(solution.status), solution.steps, solution.gradient_evaluations,
                solution.upper_value, solution.lower_value, solution.lower_gap,
                solution.stationarity, solution.constraint_violation,
            ),
        },
        folder / f"{name}.{kind}",
    )  # fmt: skip


def leaves(tree: Any) -> list[torch.Tensor]:
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def in_a_process(task: Callable[[], None]) -> int:
    """Its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    for name in CASES:
        for kind, ending in (("whole", 0), ("killed", -signal.SIGKILL), ("resumed", 0)):
            found = in_a_process(partial(run, name, folder, kind))
            if found != ending:
                sys.exit(f"{name}: the {kind} run ended with {found}, expected {ending}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
