"""Samples of an utterance: only its own part of the file is read."""

from __future__ import annotations

import io
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bilevel.errors import DatasetError
from bilevel.extras import require
from bilevel.problems.speech.data.records import Utterance

#: Of every waveform: what the features are made for.
SAMPLE_RATE = 16_000
#: Peaks below this are silence: less than one step of 16-bit audio.
_SILENT = 2.0**-15
#: Seconds by which durations in manifests may be rounded.
_ROUNDED = 0.05


class AudioError(DatasetError):
    """An utterance's audio cannot be used.

    Attributes
    ----------
    reason
        ``"missing"``, ``"unreadable"`` (the system refuses it), ``"corrupt"``, ``"empty"``,
        ``"silent"``, ``"short"`` or ``"long"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_audio(utterance: Utterance) -> NDArray[np.float32]:
    """The samples of an utterance, one channel, at 16 kHz.

    Raises
    ------
    AudioError
        The file is missing, damaged or shorter than the utterance says; the utterance is empty or
        silent.
    MissingExtraError
        The extra ``speech`` is not installed.
    """
    name = _name(utterance)
    with _opened(utterance) as file:
        first, count = _extent(file, utterance)
        rate = file.samplerate
        file.seek(first)
        samples = file.read(count, dtype="float32", always_2d=True)[:, utterance.channel]
    if count == 0:
        raise AudioError("empty", f"{name} has no samples")
    if len(samples) < count - _ROUNDED * rate:
        raise AudioError(
            "corrupt",
            f"{name} is damaged: {len(samples) / rate:g} s of {count / rate:g} s can be decoded",
        )
    if not np.isfinite(samples).all():
        raise AudioError("corrupt", f"{name} has samples that are not finite")
    if np.abs(samples).max(initial=0.0) < _SILENT:
        raise AudioError("silent", f"{name} is silent")
    if rate != SAMPLE_RATE:
        samples = require("soxr", "speech").resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def duration_of(utterance: Utterance) -> float:
    """Seconds of an utterance: the manifest's, or from the file's header.

    Raises
    ------
    AudioError
        The file is missing or damaged.
    """
    if utterance.duration is not None:
        return utterance.duration
    with _opened(utterance) as file:
        _, count = _extent(file, utterance)
        return float(count / file.samplerate)


def measured(utterances: Iterable[Utterance]) -> list[Utterance]:
    """The same with the durations of their files; without one where the audio cannot be used."""
    found = []
    for utterance in utterances:
        try:
            found.append(replace(utterance, duration=duration_of(utterance)))
        except AudioError:  # which whoever reads it will meet
            found.append(utterance)
    return found


def check_audio(utterance: Utterance) -> None:
    """Look at the header of an utterance's file.

    Raises
    ------
    AudioError
        The file is missing, damaged at its beginning, or shorter than the utterance says.
    """
    with _opened(utterance) as file:
        _extent(file, utterance)


def _name(utterance: Utterance) -> str:
    inside = "" if utterance.member is None else f", member {utterance.member}"
    return f"utterance {utterance.id!r} ({utterance.path}{inside})"


def _extent(file: Any, utterance: Utterance) -> tuple[int, int]:
    """First sample and number of samples of an utterance in its file."""
    name, rate = _name(utterance), file.samplerate
    if utterance.channel >= file.channels:
        raise AudioError(
            "corrupt", f"{name} is channel {utterance.channel} of a file with {file.channels}"
        )
    first = round(utterance.offset * rate)
    rest = file.frames - first
    count = rest if utterance.duration is None else round(utterance.duration * rate)
    if rest < 0 or count > rest + _ROUNDED * rate:
        raise AudioError(
            "corrupt",
            f"{name} ends at {utterance.offset + (utterance.duration or 0):g} s of a file of "
            f"{file.frames / rate:g} s",
        )
    return first, min(count, rest)


@contextmanager
def _opened(utterance: Utterance) -> Iterator[Any]:
    soundfile = require("soundfile", "speech")
    name = _name(utterance)
    with _file(utterance.path, name) as file:
        # By its number, since soundfile cannot pass on a name that is not UTF-8.
        source: Any = file.fileno()
        if utterance.member is not None:
            source = _unpacked(file, utterance.path, utterance.member, name)
        try:
            with soundfile.SoundFile(source, closefd=False) as sound:
                yield sound
        except soundfile.LibsndfileError as error:
            raise AudioError("corrupt", f"{name} cannot be read: {error.error_string}") from error


def _file(path: Path, name: str) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise AudioError("unreadable", f"{name} is no file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError("missing", f"{name}: there is no such file") from error
    except OSError as error:
        raise AudioError("unreadable", f"{name} cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise AudioError("unreadable", f"{name} cannot be opened: {error}") from error


# Archives ----------------------------------------------------------------------------------------


def _unpacked(file: BinaryIO, path: Path, member: str, name: str) -> io.BytesIO:
    try:
        place = _places(path, path.stat().st_mtime_ns).get(member)
        if place is None:
            raise AudioError("missing", f"{name} is no file in the archive")
        with tarfile.open(fileobj=file) as archive:
            assert archive.fileobj is not None
            archive.fileobj.seek(place[0])
            return io.BytesIO(archive.fileobj.read(place[1]))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise AudioError("corrupt", f"{name} cannot be unpacked: {error}") from error


@lru_cache(maxsize=4096)
def _places(path: Path, changed: int) -> dict[str, tuple[int, int]]:
    """Where each file of an archive begins, and its size; not sought again until it has changed."""
    with tarfile.open(path) as archive:
        return {each.name: (each.offset_data, each.size) for each in archive if each.isfile()}
