"""Penalty schedules: the penalty of step 0, 1, 2, ..."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from bilevel.errors import OptionError
from bilevel.options import accepts, check_count, check_positive

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same penalty in every step."""

    value: float

    def __post_init__(self) -> None:
        check_positive("penalty", self.value)

    def __call__(self, step: int) -> float:
        return self.value

    def settled(self, step: int) -> bool:
        """Whether the penalty no longer changes from this step on."""
        return True


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_positive("a penalty schedule's start", self.start)
        check_positive("a penalty schedule's end", self.end)
        check_count("a penalty schedule's steps", self.steps)

    def settled(self, step: int) -> bool:
        """Whether the penalty no longer changes from this step on."""
        return step >= self.steps

    def _share(self, step: int) -> float:
        return min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From ``start`` to ``end`` in equal differences over ``steps`` steps, then ``end``."""

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * self._share(step)


@dataclass(frozen=True)
class Geometric(_Ramp):
    """From ``start`` to ``end`` in equal ratios over ``steps`` steps, then ``end``."""

    def __call__(self, step: int) -> float:
        return self.start * math.pow(self.end / self.start, self._share(step))


def as_schedule(penalty: float | Schedule) -> Schedule:
    """A schedule from a number or a callable step -> penalty."""
    if isinstance(penalty, Real):
        return Constant(penalty)
    if callable(penalty) and accepts(penalty, 1):
        return penalty
    raise OptionError(
        f"penalty={penalty!r}, expected a positive number, a schedule such as "
        "bilevel.schedules.Geometric(1, 100, steps=500), or a callable step -> penalty"
    )


def settled(schedule: Schedule, step: int) -> bool:
    """Whether a schedule has reached its last value: a plain function, if its next one is alike."""
    test = getattr(schedule, "settled", None)
    if test is None:
        return penalty_at(schedule, step) == penalty_at(schedule, step + 1)
    return bool(test(step))


def penalty_at(schedule: Schedule, step: int) -> float:
    """The schedule's value, checked."""
    value = schedule(step)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise OptionError(
            f"the penalty schedule gave {value!r} at step {step}, expected a positive finite number"
        )
    return number
