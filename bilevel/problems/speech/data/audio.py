"""Samples of an utterance: only its own part of the file is read."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel.errors import DatasetError
from bilevel.extras import require
from bilevel.problems.speech.data.records import Utterance

#: Peaks below this are silence: less than one step of 16-bit audio.
_SILENT = 2.0**-15


class AudioError(DatasetError):
    """An utterance's audio cannot be used.

    Attributes
    ----------
    reason
        ``"missing"``, ``"corrupt"``, ``"empty"``, ``"silent"``, ``"short"`` or ``"long"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_audio(utterance: Utterance, sample_rate: int = 16_000) -> NDArray[np.float32]:
    """The samples of an utterance, one channel, at a rate.

    Raises
    ------
    AudioError
        The file is missing, damaged or shorter than the utterance says; the utterance is empty or
        silent.
    MissingExtraError
        The extra ``speech`` is not installed.
    """
    name = f"utterance {utterance.id!r} ({_place(utterance)})"
    with _opened(utterance, name) as file:
        rate, first = file.samplerate, round(utterance.offset * file.samplerate)
        count = -1 if utterance.duration is None else round(utterance.duration * rate)
        if utterance.channel >= file.channels:
            raise AudioError(
                "corrupt", f"{name} is channel {utterance.channel} of a file with {file.channels}"
            )
        # Durations in manifests are rounded.
        if first > file.frames or (count > 0 and first + count > file.frames + 0.05 * rate):
            raise AudioError(
                "corrupt",
                f"{name} ends at {utterance.offset + (utterance.duration or 0):g} s of a file of "
                f"{file.frames / rate:g} s",
            )
        try:
            file.seek(first)
            samples = file.read(count, dtype="float32", always_2d=True)[:, utterance.channel]
        except RuntimeError as error:
            raise AudioError("corrupt", f"{name} cannot be read: {error}") from error
    if len(samples) == 0:
        raise AudioError("empty", f"{name} has no samples")
    if not np.isfinite(samples).all():
        raise AudioError("corrupt", f"{name} has samples that are not finite")
    if np.abs(samples).max() < _SILENT:
        raise AudioError("silent", f"{name} is silent")
    if rate != sample_rate:
        samples = require("soxr", "speech").resample(samples, rate, sample_rate)
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
    name = f"utterance {utterance.id!r} ({_place(utterance)})"
    with _opened(utterance, name) as file:
        return float(file.frames / file.samplerate - utterance.offset)


def _place(utterance: Utterance) -> str:
    inside = "" if utterance.member is None else f", member {utterance.member}"
    return f"{utterance.path}{inside}"


def _opened(utterance: Utterance, name: str) -> Any:
    soundfile = require("soundfile", "speech")
    if not utterance.path.is_file():
        raise AudioError("missing", f"{name}: there is no such file")
    source: Any = utterance.path
    if utterance.member is not None:
        source = _member(utterance, name)
    try:
        return soundfile.SoundFile(source)
    except RuntimeError as error:
        raise AudioError("corrupt", f"{name} cannot be opened: {error}") from error


def _member(utterance: Utterance, name: str) -> io.BytesIO:
    assert utterance.member is not None
    try:
        with tarfile.open(utterance.path) as archive:
            file = archive.extractfile(utterance.member)
            if file is not None:
                return io.BytesIO(file.read())
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise AudioError("corrupt", f"{name} cannot be unpacked: {error}") from error
    raise AudioError("corrupt", f"{name} is no file in the archive")
