"""Gradients at a level's leaves, checked before they are used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel.distributed import average_gradients, gather, own_shard, world_size
from bilevel.domains.sharding import is_sharded
from bilevel.errors import DependenceError, NonFiniteError, VariableError
from bilevel.state import State
from bilevel.variables import Level

#: What to look for where a function ignores its variable.
DEPENDENCE_ADVICE = (
    "Check that the function uses the variable it is given, without .detach(), .item(), "
    "torch.no_grad() or a copy"
)
#: Relative difference between the processes' gradients that rounding may leave.
_AGREEMENT = 1e-4


def backward(
    loss: Tensor, level: Level, state: State, source: str, *, retain_graph: bool = False
) -> None:
    """Accumulate the gradients of a loss at a level's leaves, refusing what cannot be used.

    Raises
    ------
    DependenceError
        the loss does not depend on the level.
    NonFiniteError
        the loss or a gradient is NaN or infinite; checked in every step on the CPU,
        where it costs no synchronisation, and when a step is measured on other devices.
    VariableError
        several processes train, and a parameter's gradient differs between them.
    """
    if not loss.requires_grad:
        raise DependenceError(
            f"{source} does not depend on {level.name}: its gradient there is identically zero. "
            + DEPENDENCE_ADVICE
        )
    check = loss.device.type == "cpu" or state.measuring
    if check and not math.isfinite(loss.item()):
        raise NonFiniteError(
            f"{source} is {loss.item()} in step {state.step}, before the update of {level.name}",
            state,
        )
    loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    average_gradients(state.upper.leaves + state.lower.leaves)
    state.gradient_evaluations += 1
    if check:
        _check_gradients(level, state, source)
    if state.step == 0:
        _check_agreement(level)


def require_gradients(level: Level, source: str) -> None:
    """Refuse a level none of whose leaves received a gradient."""
    if not level.gradients():
        raise DependenceError(
            f"no gradient of {source} reaches {level.name} ({', '.join(level.names[:4])}). "
            + DEPENDENCE_ADVICE
        )


def _check_gradients(level: Level, state: State, source: str) -> None:
    gradients = level.gradients()
    if not gradients:
        return
    norms = torch._foreach_norm([own_shard(gradient) for gradient in gradients])
    if math.isfinite(sum(norms[1:], norms[0]).item()):
        return
    for name, leaf in zip(level.names, level.leaves, strict=True):
        if leaf.grad is not None and not bool(torch.isfinite(own_shard(leaf.grad)).all()):
            raise NonFiniteError(
                f"the gradient of {source} with respect to {name} is not finite in step "
                f"{state.step}",
                state,
            )


def _check_agreement(level: Level) -> None:
    """Refuse a parameter that is trained on several processes' data without a wrapper."""
    if world_size() == 1:
        return
    norms = {
        name: float(leaf.grad.norm())
        for name, leaf in zip(level.names, level.leaves, strict=True)
        if leaf.grad is not None and not is_sharded(leaf)
    }
    everyone = gather(norms)
    for name in norms:
        found = [each[name] for each in everyone]
        if max(found) - min(found) > _AGREEMENT * max(found):
            raise VariableError(
                f"the gradient of {name} differs between the processes (norms {found}): they would "
                "drift apart. Wrap its network in DistributedDataParallel or fully_shard and call "
                "the wrapper inside the objectives; DDP needs find_unused_parameters=True where "
                "an objective leaves some of its parameters unused"
            )
