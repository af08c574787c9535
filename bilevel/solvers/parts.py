"""Whether a solver's parts are what their options ask for, and make what they should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bilevel.errors import OptionError
from bilevel.options import (
    accepts,
    check_optimizer_factory,
    check_scheduler_factory,
    described,
)
from bilevel.outer.base import Outer
from bilevel.outer.first_order import FirstOrder
from bilevel.responses.base import Response
from bilevel.responses.gradient_descent import GradientDescent
from bilevel.state import State
from bilevel.variables import Level

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

_RESPONSE_OPTIONS = ("lower_lr", "lower_optimizer", "lower_scheduler", "inner_steps")
_OUTER_OPTIONS = ("upper_lr", "upper_optimizer", "upper_scheduler")


def check_parts(solver: PenaltySolver) -> None:
    """Refuse options of the wrong kind, and options that another one overrides.

    Raises
    ------
    OptionError
        naming the option, what it is, and what it should be.
    """
    for level in ("upper", "lower"):
        optimizer = getattr(solver, f"{level}_optimizer")
        check_optimizer_factory(f"{level}_optimizer", optimizer)
        check_scheduler_factory(f"{level}_scheduler", getattr(solver, f"{level}_scheduler"))
        if getattr(solver, f"{level}_lr") is not None and optimizer is not None:
            raise OptionError(f"give {level}_lr or {level}_optimizer, not both")
    _check_part(solver, "response", Response, _RESPONSE_OPTIONS)
    _check_part(solver, "outer", Outer, _OUTER_OPTIONS)


def _check_part(
    solver: PenaltySolver, name: str, kind: type[Any], overridden: tuple[str, ...]
) -> None:
    part = getattr(solver, name)
    if part is None:
        return
    if not isinstance(part, kind):
        raise OptionError(
            f"{name} is {described(part)}, expected an instance of {kind.__name__}, such as "
            f"{'Exact()' if kind is Response else 'SQP()'}"
        )
    for option in overridden:
        if getattr(solver, option) is not None:
            raise OptionError(
                f"{option} would have no effect beside {name}={type(part).__name__}(...): give the "
                f"step sizes to that, or leave {name}= out"
            )


def check_optimizers(state: State) -> None:
    """Refuse optimisers that leave a variable out, or whose step needs more than gradients.

    Raises
    ------
    OptionError
        naming the option and what it made.
    """
    outer, response, track = state.outer, state.response, state.perturbed
    if isinstance(outer, FirstOrder) and state.upper.leaves:
        _check_optimizer("upper", state.upper_optimizer, state.upper)
        if outer.scheduler is not None:
            _check_scheduler("upper", state.upper_scheduler)
    if isinstance(response, GradientDescent):
        _check_optimizer("lower", track.optimizer, state.lower)
        if response.scheduler is not None:
            _check_scheduler("lower", track.scheduler)


def _check_optimizer(name: str, optimizer: Any, level: Level) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(
            f"{name}_optimizer made {described(optimizer)}, expected a torch.optim.Optimizer"
        )
    if not accepts(type(optimizer).step, 1):  # the instance's may be wrapped by a scheduler
        raise OptionError(
            f"{name}_optimizer made {described(optimizer)}, whose step() needs a closure, and the "
            "gradients are taken here: use one whose step() takes none, such as torch.optim.Adam"
        )
    held = {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}
    left_out = [
        label for label, leaf in zip(level.names, level.leaves, strict=True) if id(leaf) not in held
    ]
    if left_out:
        raise OptionError(
            f"{name}_optimizer leaves out {', '.join(left_out[:4])}, which would never move: make "
            "it from all the leaves that it is called with"
        )


def _check_scheduler(name: str, scheduler: Any) -> None:
    if not (hasattr(scheduler, "step") and accepts(scheduler.step, 0)):
        raise OptionError(
            f"{name}_scheduler made {described(scheduler)}, whose step() needs an argument or is "
            "missing: use one that goes by steps alone, such as torch.optim.lr_scheduler.StepLR"
        )
