"""Tensors that ``fully_shard`` spreads over processes: a set couples entries across the shards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

Owner = TypeVar("Owner")


def is_sharded(value: Tensor) -> bool:
    """Whether ``value`` is a ``DTensor``, without importing its module to find out."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """All entries of a tensor on every process; any other tensor itself."""
    gather: Any = getattr(value, "full_tensor", None)
    return value if gather is None else cast(Tensor, gather())


def sharded_like(whole_tensor: Tensor, value: Tensor) -> Tensor:
    """This process's shard of a tensor that every process holds, laid out as ``value`` is."""
    from torch.distributed.tensor import DTensor, Replicate

    layout = cast(DTensor, value)
    replicas = [Replicate()] * layout.device_mesh.ndim
    copies = DTensor.from_local(whole_tensor, layout.device_mesh, replicas, run_check=False)
    return copies.redistribute(placements=layout.placements)


def on_whole_tensor(
    method: Callable[[Owner, Tensor], Tensor],
) -> Callable[[Owner, Tensor], Tensor]:
    """Let a method from tensor to tensor see all the entries of a sharded one."""

    @functools.wraps(method)
    def wrapped(owner: Owner, value: Tensor) -> Tensor:
        if not is_sharded(value):
            return method(owner, value)
        return sharded_like(method(owner, whole(value)), value)

    return wrapped
