"""What changes when several processes train together.

In a process group ``solve`` and ``step`` are collective calls: every process makes them, with its
own share of the batches, and all end with the same x and y. A network's gradients are averaged by
its wrapper, DDP or ``fully_shard``; those of plain tensors are averaged here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bilevel.domains.sharding import is_sharded


def initialized() -> bool:
    """Whether there is a process group, be it of one process."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes; 1 outside ``torchrun``."""
    return dist.get_world_size() if initialized() else 1


def rank() -> int:
    """This process's number; 0 outside ``torchrun``."""
    return dist.get_rank() if initialized() else 0


def gather(value: Any) -> list[Any]:
    """One small value from each process, in the order of their ranks; waits for all of them."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def mean_values(values: dict[str, float]) -> dict[str, float]:
    """The mean over the processes of every named value."""
    everyone = gather(values)
    if len(everyone) == 1:
        return values
    return {name: sum(each[name] for each in everyone) / len(everyone) for name in values}


def averaging(module: nn.Module) -> nn.Module:
    """The module, which several processes train with the mean of their gradients (DDP)."""
    if world_size() == 1:
        return module
    device = next(module.parameters()).device
    return DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device])


def own_shard(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    local: Any = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def is_wrapped(leaf: Tensor) -> bool:
    """Whether a network holds the leaf, whose wrapper then keeps it alike on all processes."""
    return isinstance(leaf, nn.Parameter) or is_sharded(leaf)


def gathering_modules(leaves: Iterable[Tensor]) -> list[Any]:
    """The ``fully_shard`` modules that gather these leaves for their forward passes.

    Such a module may keep what it gathered until the next backward pass, so its ``reshard()`` must
    be called before a leaf is given another value; here that is done a first time.
    """
    sharded = {id(leaf) for leaf in leaves if is_sharded(leaf)}
    if not sharded:
        return []
    from torch.distributed.fsdp import FSDPModule

    # A parameter does not know its module, and the user passes none.
    modules: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), FSDPModule)]
    for each in modules:
        each.reshard()
    return [each for each in modules if any(id(part) in sharded for part in each.parameters())]


@torch.no_grad()
def share_start(leaves: Iterable[Tensor]) -> None:
    """Give plain tensors the values of process 0, as DDP does to a network's parameters."""
    if world_size() > 1:
        for leaf in leaves:
            if not is_wrapped(leaf):
                _in_place(lambda values: dist.broadcast(values, 0), leaf)


@torch.no_grad()
def average_gradients(leaves: Iterable[Tensor]) -> None:
    """Average the gradients of plain tensors, as DDP does those of a network's parameters."""
    if world_size() > 1:
        for leaf in leaves:
            if leaf.grad is not None and leaf.requires_grad and not is_wrapped(leaf):
                _in_place(dist.all_reduce, leaf.grad.div_(world_size()))


def _in_place(collective: Callable[[Tensor], Any], tensor: Tensor) -> None:
    """Apply a collective, which takes contiguous memory only."""
    values = tensor.contiguous()
    collective(values)
    if values is not tensor:
        tensor.copy_(values)
