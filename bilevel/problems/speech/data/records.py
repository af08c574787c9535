"""One record for an utterance, whatever format it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        The audio file, or a tar archive and the file in it.
    offset, duration
        Seconds from the file's start, and length; to the file's end where there is none.
    channel
        Of the file, from 0.
    text, speaker, language, phones
        Where they are known.
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
