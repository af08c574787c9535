"""Whether a solver's parts are of the right kind, and no option is left without effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bilevel.errors import OptionError
from bilevel.options import check_optimizer_factory, check_scheduler_factory, described
from bilevel.outer.base import Outer
from bilevel.responses.base import Response

if TYPE_CHECKING:
    from bilevel.solvers.base import PenaltySolver

_RESPONSE_OPTIONS = ("lower_lr", "lower_optimizer", "lower_scheduler", "inner_steps")
_OUTER_OPTIONS = ("upper_lr", "upper_optimizer", "upper_scheduler")


def check_parts(solver: PenaltySolver) -> None:
    """Refuse options of the wrong kind, and options that would have no effect.

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
    for level in ("upper", "lower"):
        moves = (getattr(solver, f"{level}_lr"), getattr(solver, f"{level}_optimizer"))
        if moves == (None, None) and getattr(solver, f"{level}_scheduler") is not None:
            raise OptionError(
                f"{level}_scheduler has nothing to schedule: give {level}_lr or {level}_optimizer"
            )


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
