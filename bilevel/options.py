"""What a hyperparameter may be; an offending value is named where it is given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from bilevel.errors import OptionError


def check_positive(name: str, value: Any) -> None:
    """Refuse what is not a positive finite number.

    Raises
    ------
    OptionError
        with the option's name and the offending value.
    """
    if not _is(Real, value) or not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r}, expected a positive finite number")


def check_optional_positive(name: str, value: Any) -> None:
    """Allow ``None`` as well; raises as :func:`check_positive`."""
    if value is not None:
        check_positive(name, value)


def check_nonnegative(name: str, value: Any) -> None:
    """Refuse what is not a finite number of at least 0; raises as :func:`check_positive`."""
    if not _is(Real, value) or not 0 <= value < math.inf:
        raise OptionError(f"{name}={value!r}, expected a finite number >= 0")


def check_share(name: str, value: Any, *, below_one: bool = False) -> None:
    """Refuse what is not a number in [0, 1], or in [0, 1); raises as :func:`check_positive`."""
    if not _is(Real, value) or not 0 <= value <= 1 or (below_one and value == 1):
        raise OptionError(f"{name}={value!r}, expected a share in [0, 1{')' if below_one else ']'}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not an integer of at least ``least``; raises as :func:`check_positive`."""
    if not _is(Integral, value) or value < least:
        raise OptionError(f"{name}={value!r}, expected an integer >= {least}")


def check_optimizer_factory(name: str, value: Any) -> None:
    """Refuse what cannot make an optimiser from leaves; raises as :func:`check_positive`."""
    _check_factory(name, value, "the leaves", "functools.partial(torch.optim.Adam, lr=1e-3)")


def check_scheduler_factory(name: str, value: Any) -> None:
    """Refuse what cannot make a scheduler from an optimiser; raises as :func:`check_positive`."""
    example = "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)"
    _check_factory(name, value, "the optimiser", example)


def described(value: Any) -> str:
    """A value's kind, for messages."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _check_factory(name: str, value: Any, argument: str, example: str) -> None:
    if value is not None and not (callable(value) and accepts(value, 1)):
        raise OptionError(
            f"{name} is {described(value)}, which cannot be called with {argument} alone: give a "
            f"function such as {example}"
        )


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:  # some builtins have no signature
        return True
    except TypeError:
        return False
    return True


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
