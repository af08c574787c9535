"""One record for an utterance, whatever format it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path

from bilevel.errors import DatasetError


@dataclass(frozen=True)
class Phone:
    """A phone of an alignment, with its times in seconds from the utterance's start."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """A stretch of audio and what is known of it.

    Attributes
    ----------
    id
        Unique in its corpus.
    path, member
        The audio file, by its name or path, or a tar archive and the file in it.
    offset, duration
        Seconds from the file's start, and length; to the file's end where there is none.
    channel
        Of the file, from 0.
    text, speaker, language, phones
        Where they are known.

    Raises
    ------
    DatasetError
        A time is negative or not finite, the channel is no number of one, or the path is none.
    """

    id: str
    path: Path
    member: str | None = None
    offset: float = 0.0
    duration: float | None = None
    channel: int = 0
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    phones: tuple[Phone, ...] = ()

    def __post_init__(self) -> None:
        name = f"utterance {self.id!r}"
        if not isinstance(self.path, str | PathLike):
            raise DatasetError(f"{name}: path={self.path!r}, expected a file's")
        object.__setattr__(self, "path", Path(self.path))
        for time, seconds in (("offset", self.offset), ("duration", self.duration or 0.0)):
            if not (isinstance(seconds, Real) and 0 <= seconds < math.inf):
                raise DatasetError(f"{name}: {time}={seconds!r}, expected seconds >= 0")
        if not (isinstance(self.channel, Integral) and self.channel >= 0):
            raise DatasetError(f"{name}: channel={self.channel!r}, expected an integer >= 0")
