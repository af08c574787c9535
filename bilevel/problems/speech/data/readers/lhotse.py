"""Lhotse's cuts: JSON lines, plain or gzipped, of MonoCut objects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.rows import Row, first_object, json_rows
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether the first object is a cut."""
    return {"recording", "start", "duration"} <= set(first_object(path))


def read(path: Path) -> list[Utterance]:
    """One utterance a cut, with the text of its supervisions in the order of time."""
    return [_utterance(row, path.parent) for row in json_rows(path)]


def _utterance(row: Row, folder: Path) -> Utterance:
    recording = row.values.get("recording")
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or not sources or not isinstance(sources[0], dict):
        raise DatasetError(f"{row.place}: the cut has no recording with sources")
    if row.values.get("type", "MonoCut") != "MonoCut" or len(sources) > 1:
        raise DatasetError(
            f"{row.place}: a {row.values.get('type')} of {len(sources)} sources, expected a "
            "MonoCut of one file"
        )
    source = Row(sources[0], f"{row.place}, source")
    if source.values.get("type", "file") != "file":
        raise DatasetError(
            f"{row.place}: a source of type {source.values['type']!r}, expected a file: save the "
            "cuts with their audio as files"
        )
    duration = row.seconds("duration")
    if not duration:
        raise DatasetError(f"{row.place}: the cut's duration is {duration!r}")
    # A supervision may begin before its cut.
    spoken = sorted(
        row.rows("supervisions"), key=lambda each: each.seconds("start", 0.0, -math.inf) or 0.0
    )
    texts = [each.optional("text") for each in spoken]
    speakers = [each.optional("speaker") for each in spoken]
    languages = [each.optional("language") for each in spoken]
    return Utterance(
        id=row.text("id"),
        path=source.path("source", folder),
        offset=row.seconds("start", 0.0) or 0.0,
        duration=duration,
        channel=_channel(row, sources[0]),
        text=" ".join(filter(None, texts)) or None,
        speaker=next(filter(None, speakers), None),
        language=next(filter(None, languages), None),
    )


def _channel(row: Row, source: dict[str, Any]) -> int:
    """The cut's channel, as its place among those of the file."""
    channel, channels = row.values.get("channel", 0), source.get("channels", [0])
    if not isinstance(channels, list) or channel not in channels:
        raise DatasetError(
            f"{row.place}: channel {channel!r} is not among the file's channels {channels}"
        )
    return int(channels.index(channel))
