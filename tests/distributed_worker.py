"""Trains the cases of ``test_distributed.py`` in each of several processes (see ``main``)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from networks import CLASSES, FEATURES, Batch, Network, batches, classification, losses, network
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bilevel import PBGD, BilevelProblem, PBGDFree
from bilevel.callbacks import Callback, Checkpoint
from bilevel.errors import BilevelError

STEPS, FEWER_STEPS = 20, 8
EVERY = 4
SGD = {"upper_lr": 0.1, "lower_lr": 0.3}
ADAM = {
    f"{level}_optimizer": partial(torch.optim.Adam, lr=0.02) for level in ("upper", "lower")
}  # fmt: skip
SOLVERS = {
    f"{method} {rates}": make(penalty=5.0, **steps, **options)
    for rates, options in (("sgd", SGD), ("adam", ADAM))
    for method, make, steps in (
        ("free-1", PBGDFree, {"inner_steps": 1}),
        ("free-3", PBGDFree, {"inner_steps": 3}),
        ("alternating", PBGD, {"inner_steps": 2}),
        ("joint", PBGD, {"inner_steps": 2, "variant": "joint"}),
    )
}
SOLVERS |= {
    "clipped": PBGD(penalty=5.0, clip_norm=0.05, **SGD),
    "alternating, accumulating": PBGD(penalty=5.0, accumulate=2, **SGD),
    "joint, accumulating": PBGD(penalty=5.0, accumulate=2, variant="joint", **SGD),
}
WRAPPINGS = ("ddp", "ddp apart", "fsdp", "fsdp apart")


@dataclass(frozen=True)
class Case:
    problem: str
    wrapping: str
    solver: str

    @property
    def steps(self) -> int:
        return STEPS if self.problem == "network" else FEWER_STEPS

    def __str__(self) -> str:
        return f"{self.problem} under {self.wrapping} by {self.solver}"


def cases(problem: str, wrappings: tuple[str, ...], *solvers: str) -> list[Case]:
    return [Case(problem, wrapping, solver) for wrapping in wrappings for solver in solvers]


QUICK = [
    *cases("network", ("ddp", "ddp apart"), "free-1 sgd", "alternating adam", "joint sgd"),
    *cases("network", ("fsdp",), "alternating sgd", "joint adam"),
    *cases("network", ("fsdp apart",), "free-3 sgd", "alternating adam"),
    *cases("network", ("ddp", "fsdp apart"), "clipped"),
    *cases("network", ("ddp",), "alternating, accumulating", "joint, accumulating"),
    *cases("network", ("fsdp",), "joint, accumulating"),
    *cases("features", ("ddp apart",), "free-1 sgd", "alternating sgd", "joint sgd"),
    *cases("features", ("fsdp apart",), "joint sgd"),
    *cases("objectives", ("ddp", "fsdp"), "alternating sgd"),
    *cases("two heads", ("ddp",), "free-3 sgd", "alternating sgd", "joint sgd"),
    *cases("two heads", ("fsdp",), "alternating sgd"),
    *cases("data of its own", ("ddp", "fsdp"), "alternating sgd"),
    *cases("class weights", ("ddp", "fsdp"), "clipped"),
    *cases("plain tensors", ("none",), "alternating adam", "joint sgd"),
]
SLOW = [case for case in cases("network", WRAPPINGS, *SOLVERS) if case not in QUICK]

# Networks and problems --------------------------------------------------------------------------


class TwoHeads(Network):
    """f uses one head and g the other, so each leaves parameters of the network unused."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(self.head.in_features, FEATURES, dtype=torch.float64)

    def forward(self, inputs: Tensor, head: str = "head") -> Tensor:
        return getattr(self, head)(self.backbone(inputs))

    def levels(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        heads = {"head": self.head, "other": self.other}
        y = {f"{k}.{n}": p for k, head in heads.items() for n, p in head.named_parameters()}
        return dict(self.backbone.named_parameters()), y


def wrap(net: Network, wrapping: str) -> tuple[Callable[..., Tensor], ...]:
    """The network as f and g call it: whole, its backbone, its head."""
    if wrapping == "ddp":
        unused = isinstance(net, TwoHeads)
        return DistributedDataParallel(net, find_unused_parameters=unused), net.backbone, net.head
    if wrapping == "ddp apart":
        backbone, head = map(DistributedDataParallel, (net.backbone, net.head))
        return lambda inputs: head(backbone(inputs)), backbone, head
    if wrapping.startswith("fsdp"):
        for part in net.children():
            fully_shard(part)
    if wrapping == "fsdp":
        fully_shard(net)
    return net, net.backbone, net.head


def with_features(net: Network, wrapping: str) -> Any:
    _, backbone, head = wrap(net, wrapping)
    problem = BilevelProblem(
        upper=lambda hidden, y, batch: losses(head(hidden), batch[1])[0],
        lower=lambda hidden, y, batch: losses(head(hidden), batch[1])[1],
        features=lambda x, batch: backbone(batch[0]),
    )
    return problem, *net.levels()


def with_objectives(net: Network, wrapping: str) -> Any:
    predict, *_ = wrap(net, wrapping)

    def both(x: Any, y: Any, batch: tuple[Batch, Batch]) -> tuple[Tensor, Tensor]:
        (inputs, labels), (others, other_labels) = batch
        first, second = predict(torch.cat([inputs, others])).tensor_split([len(inputs)])
        return losses(first, labels)[0], losses(second, other_labels)[1]

    return BilevelProblem(objectives=both), *net.levels()


def two_heads(net: Network, wrapping: str) -> Any:
    predict, *_ = wrap(net, wrapping)
    problem = BilevelProblem(
        upper=lambda x, y, batch: cross_entropy(predict(batch[0]), batch[1]),
        lower=lambda x, y, batch: (predict(batch[0], "other") - batch[0]).square().mean(),
    )
    return problem, *net.levels()


def class_weights(net: Network, wrapping: str) -> Any:
    """x is a plain tensor, different at the start in each process, and y the whole network."""
    predict, *_ = wrap(net, wrapping)
    problem = BilevelProblem(
        upper=lambda x, y, batch: cross_entropy(predict(batch[0]), batch[1]) + 0.1 * x.exp().sum(),
        lower=lambda x, y, batch: (
            x.exp()[batch[1]] * cross_entropy(predict(batch[0]), batch[1], reduction="none")
        ).mean(),
    )
    return problem, torch.full((CLASSES,), 0.5 * share()[0]).double(), list(net.parameters())


def plain_tensors(net: Network, wrapping: str) -> Any:
    """Ridge regression, with the ridge's logarithms as x."""

    def residual(y: Tensor, batch: Batch) -> Tensor:
        return (batch[0] @ y - batch[1][:, None]).square().mean()

    problem = BilevelProblem(
        upper=lambda x, y, batch: residual(y, batch) + 0.01 * (x + 1).square().sum(),
        lower=lambda x, y, batch: residual(y, batch) + (x.exp() @ y.square()).sum(),
    )
    x, y = torch.zeros(FEATURES).double(), torch.ones(2, FEATURES).double().T
    return problem, x + share()[0], y - share()[0]


def on_data_of_its_own(net: Network, wrapping: str) -> Any:
    """f and g hold their data, so ``solve`` is given no batches."""
    predict, *_ = wrap(net, wrapping)
    (upper,), (lower,) = mine(batches(1, 1)), mine(batches(2, 1))
    problem = BilevelProblem(
        upper=lambda x, y: losses(predict(upper[0]), upper[1])[0],
        lower=lambda x, y: losses(predict(lower[0]), lower[1])[1],
    )
    return problem, *net.levels()


PROBLEMS: dict[str, Callable[[Any, str], Any]] = {
    "network": lambda net, wrapping: (classification(wrap(net, wrapping)[0]), *net.levels()),
    "features": with_features,
    "objectives": with_objectives,
    "two heads": two_heads,
    "class weights": class_weights,
    "plain tensors": plain_tensors,
    "data of its own": on_data_of_its_own,
}

# Runs -------------------------------------------------------------------------------------------


def share() -> tuple[int, int]:
    """This process's number and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mine(full: list[Batch]) -> list[Batch]:
    """This process's part of every batch."""
    rank, world = share()
    return [(inputs[rank::world], labels[rank::world]) for inputs, labels in full]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def values(tree: Any) -> list[Tensor]:
    parts = list(tree.values()) if isinstance(tree, dict) else tree
    return [whole(part) for part in (parts if isinstance(parts, list) else [parts])]


def solve(case: Case, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    net = TwoHeads() if case.problem == "two heads" else network()
    problem, x, y = PROBLEMS[case.problem](net, case.wrapping)
    data = {"upper_batches": mine(batches(1)), "lower_batches": mine(batches(2))}
    solution = SOLVERS[case.solver].solve(
        problem, x, y, max_steps=case.steps, tolerance=0.0, progress=False,
        **({} if case.problem == "data of its own" else data), **{"log_every": EVERY, **options},
    )  # fmt: skip
    return {
        "x": values(solution.x),
        "y": values(solution.y),
        "history": solution.history.drop(columns="seconds").to_dict("list"),
        "upper_value": solution.upper_value,
        "lower_value": solution.lower_value,
        "lower_gap": solution.lower_gap,
        "status": str(solution.status),
    }


def one_stops() -> dict[str, Any]:
    """A callback asks for the end in the last process only."""
    rank, world = share()
    callback = lambda record, state: rank == world - 1 and record["step"] == 5  # noqa: E731
    return solve(Case("network", "ddp", "free-1 sgd"), callbacks=[callback], log_every=1)


def evaluated() -> dict[str, Any]:
    """A callback calls the network as it stands; ``fully_shard`` keeps what it gathered for it."""
    case = Case("network", "fsdp apart", "joint sgd")
    net, inputs = network(), mine(batches(3, 1))[0][0]
    problem, x, y = PROBLEMS[case.problem](net, case.wrapping)

    @torch.no_grad()
    def evaluate(record: Any, state: Any) -> None:
        net(inputs)

    evaluate(None, None)
    solution = SOLVERS[case.solver].solve(
        problem, x, y, max_steps=STEPS, tolerance=0.0, progress=False, callbacks=[evaluate],
        log_every=EVERY, upper_batches=mine(batches(1)), lower_batches=mine(batches(2)),
    )  # fmt: skip
    return {"x": values(solution.x), "y": values(solution.y), "gap": solution.lower_gap}


def unwrapped() -> dict[str, Any]:
    try:
        solve(Case("network", "none", "free-1 sgd"))
    except BilevelError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {}


def random_run(wrapping: str, **options: Any) -> dict[str, Any]:
    """Dropout and shuffled data, each process with generators of its own."""
    rank, world = share()
    net = network(dropout=0.3)
    problem, x, y = PROBLEMS["network"](net, wrapping)
    torch.manual_seed(100 + rank)
    loaders = []
    for seed in (1, 2):
        inputs, labels = zip(*batches(seed, 4, 10), strict=True)
        data = TensorDataset(torch.cat(inputs), torch.cat(labels))
        sampler = DistributedSampler(data, world, rank, seed=seed)
        loaders.append(DataLoader(data, 5, sampler=sampler))
    solution = SOLVERS["alternating adam"].solve(
        problem, x, y, tolerance=0.0, progress=False, log_every=EVERY,
        upper_batches=loaders[0], lower_batches=loaders[1], **options,
    )  # fmt: skip
    history = solution.history.drop(columns="seconds").to_dict("list")
    return {"x": values(solution.x), "y": values(solution.y), "history": history}


class Kill(Callback):
    """Kills one process; the other fails at its next collective call."""

    def on_step(self, run: Any) -> None:
        if run.state.step == 13 and share()[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path) -> None:
    checkpoint = Checkpoint(folder / "fsdp apart.checkpoint", every=5)
    random_run("fsdp apart", max_steps=STEPS, callbacks=[Kill(), checkpoint])


def resumed(folder: Path, wrapping: str) -> dict[str, Any]:
    path = folder / f"{wrapping}.checkpoint"
    if wrapping == "ddp":  # not killed: ended early, its last checkpoint at step 13
        random_run(wrapping, max_steps=13, callbacks=[Checkpoint(path, every=5)])
    return {
        "whole": random_run(wrapping, max_steps=STEPS),
        "resumed": random_run(wrapping, max_steps=STEPS, resume=path),
    }


def main(mode: str, folder: Path) -> None:
    """``killed`` ends by a SIGKILL; ``quick`` and ``slow`` write a file of every case's result."""
    address = folder / "address"
    method = f"file://{address}" if mode == "killed" else "env://"
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world)
    if mode == "killed":
        killed(folder)
    found: dict[str, Any] = {
        str(case): solve(case) for case in (QUICK if mode == "quick" else SLOW)
    }  # fmt: skip
    if mode == "quick":
        found["one stops"] = one_stops()
        found["unwrapped"] = unwrapped()
        found["evaluated"] = evaluated()
        for wrapping in ("ddp", "fsdp apart"):
            found[f"resumed {wrapping}"] = resumed(folder, wrapping)
    torch.save(found, folder / f"{mode}.rank{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
