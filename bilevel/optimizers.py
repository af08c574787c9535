"""The ``torch.optim`` optimisers that move a level's leaves: made, checked, and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bilevel.errors import OptionError
from bilevel.options import accepts, described
from bilevel.variables import Level

OptimizerFactory: TypeAlias = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], Any]


def make_optimizer(
    name: str, level: Level, lr: float | None, factory: OptimizerFactory | None
) -> torch.optim.Optimizer:
    """The user's optimiser over a level's leaves, or plain gradient descent with step size lr.

    Raises
    ------
    OptionError
        the factory makes no optimiser, one that leaves a leaf out, or one whose step needs more
        than gradients.
    """
    make = factory or partial(torch.optim.SGD, lr=lr or 0.0)
    optimizer = make(level.leaves)
    _check_optimizer(name, optimizer, level)
    return optimizer


def make_scheduler(
    name: str, optimizer: torch.optim.Optimizer, factory: SchedulerFactory | None
) -> Any:
    """The user's learning-rate scheduler, or ``None``.

    Raises
    ------
    OptionError
        its steps need an argument, or there are none.
    """
    if factory is None:
        return None
    scheduler = factory(optimizer)
    if not (hasattr(scheduler, "step") and accepts(scheduler.step, 0)):
        raise OptionError(
            f"{name} made {described(scheduler)}, whose step() needs an argument or is missing: "
            "use one that goes by steps alone, such as torch.optim.lr_scheduler.StepLR"
        )
    return scheduler


def has_fused_steps(leaf: Tensor) -> bool:
    """Whether torch's optimisers take ``fused=True`` for leaves like this one."""
    return leaf.device.type in ("cpu", "cuda")


def take_step(level: Level, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
    """Move the leaves along their gradients, and back into their domains."""
    if clip_norm is not None:
        level.clip_gradients(clip_norm)
    optimizer.step()
    level.project()


def _check_optimizer(name: str, optimizer: Any, level: Level) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(f"{name} made {described(optimizer)}, expected a torch.optim.Optimizer")
    if not accepts(type(optimizer).step, 1):  # the instance's may be wrapped by a scheduler
        raise OptionError(
            f"{name} made {described(optimizer)}, whose step() needs a closure, and the gradients "
            "are taken here: use one whose step() takes none, such as torch.optim.Adam"
        )
    held = {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}
    left_out = [
        label for label, leaf in zip(level.names, level.leaves, strict=True) if id(leaf) not in held
    ]
    if left_out:
        raise OptionError(
            f"{name} leaves out {', '.join(left_out[:4])}, which would never move: make it from "
            "all the leaves that it is called with"
        )
