"""Bootstrap intervals of ratios, such as errors over words, from their parts by utterance."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bilevel.errors import OptionError, ProblemError
from bilevel.options import check_count

Array: TypeAlias = NDArray[np.float64]

#: Entries of the table of draws that are held at a time.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The percentile bootstrap: units are drawn with replacement, as many as there are.

    Parameters
    ----------
    resamples
        How many draws.
    level
        Share of the draws inside the interval.
    seed
        Of the draws. The same seed draws the same units, so that differences are paired.
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("resamples", self.resamples)
        check_count("seed", self.seed, least=0)
        if not (isinstance(self.level, Real) and 0 < self.level < 1):
            raise OptionError(f"level={self.level!r}, expected a share between 0 and 1")

    def ratio(self, numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
        """The sum of the numerators over that of the denominators, one of each a unit."""
        (top,), bottom = _checked([numerators], denominators)
        sums = self._sums(np.stack([top, bottom]))
        return self._estimate(top.sum() / bottom.sum(), sums[0], sums[1])

    def difference(
        self, first: ArrayLike, second: ArrayLike, denominators: ArrayLike
    ) -> tuple[Estimate, Array]:
        """The first ratio minus the second of the same units, and its draws."""
        (one, two), bottom = _checked([first, second], denominators)
        sums = self._sums(np.stack([one - two, bottom]))
        estimate = self._estimate((one - two).sum() / bottom.sum(), sums[0], sums[1])
        return estimate, _ratios(sums[0], sums[1])

    def _sums(self, rows: Array) -> Array:
        """Sums [rows, resamples] over the drawn units."""
        generator = np.random.default_rng(self.seed)
        units = rows.shape[1]
        chunk = max(_CHUNK // units, 1)
        parts = []
        for start in range(0, self.resamples, chunk):
            count = min(chunk, self.resamples - start)
            parts.append(rows[:, generator.integers(units, size=(count, units))].sum(axis=2))
        return np.concatenate(parts, axis=1)

    def _estimate(self, value: Any, top: Array, bottom: Array) -> Estimate:
        tail = 50 * (1 - self.level)
        low, high = np.percentile(_ratios(top, bottom), [tail, 100 - tail])
        return Estimate(float(value), float(low), float(high))


def _ratios(top: Array, bottom: Array) -> Array:
    """The draws that have a ratio: of few units with a length, some have none."""
    return top[bottom > 0] / bottom[bottom > 0]


def _checked(numerators: list[ArrayLike], denominators: ArrayLike) -> tuple[list[Array], Array]:
    tops = [np.asarray(each, dtype=np.float64) for each in numerators]
    bottom = np.asarray(denominators, dtype=np.float64)
    if any(each.shape != bottom.shape for each in tops) or bottom.ndim != 1:
        shapes = ", ".join(str(each.shape) for each in (*tops, bottom))
        raise ProblemError(f"units of shapes {shapes}, expected one number of each kind a unit")
    if not bottom.sum() > 0:
        raise ProblemError(
            f"{len(bottom)} units of total length {bottom.sum():g} have no ratio; expected at "
            "least one with a reference that is not empty"
        )
    return tops, bottom
