"""NeMo's manifests: JSON lines with audio_filepath, duration, text, offset."""

from __future__ import annotations

from pathlib import Path

from bilevel.problems.speech.data.readers.rows import first_object, json_rows
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether the first object has NeMo's column."""
    return "audio_filepath" in first_object(path)


def read(path: Path) -> list[Utterance]:
    """One utterance a line; relative paths are below the manifest's folder."""
    found = []
    for row in json_rows(path):
        file = row.path("audio_filepath", path.parent)
        offset = row.seconds("offset", 0.0) or 0.0
        name = row.values["audio_filepath"] + (f"@{offset:g}" if offset else "")
        found.append(
            Utterance(
                id=row.optional("id") or name, path=file, offset=offset,
                duration=row.seconds("duration"), text=row.optional("text"),
                speaker=row.optional("speaker"), language=row.optional("lang"),
            )
        )  # fmt: skip
    return found
