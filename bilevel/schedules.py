"""Penalty schedules: the penalty of step 0, 1, 2, ..."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bilevel.errors import OptionError

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same penalty in every step."""

    value: float

    def __post_init__(self) -> None:
        _check_positive("penalty", self.value)

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
        _check_positive("start", self.start)
        _check_positive("end", self.end)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise OptionError(
                f"steps={self.steps!r} of a penalty schedule, expected an integer >= 1"
            )

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
    if isinstance(penalty, int | float):
        return Constant(float(penalty))
    if callable(penalty):
        return penalty
    raise OptionError(
        f"penalty={penalty!r}, expected a positive number, a schedule such as "
        "bilevel.schedules.Geometric(1, 100, steps=500), or a callable step -> penalty"
    )


def settled(schedule: Schedule, step: int) -> bool:
    """Whether a schedule has reached its last value; unknown callables are taken to have."""
    test = getattr(schedule, "settled", None)
    return bool(test(step)) if test is not None else True


def penalty_at(schedule: Schedule, step: int) -> float:
    """The schedule's value, checked."""
    value = float(schedule(step))
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"the penalty schedule gave {value} at step {step}, expected > 0")
    return value


def _check_positive(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise OptionError(f"{name}={value!r}, expected a positive finite number")
