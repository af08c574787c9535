"""SpeechBrain's manifests: CSV with ID, duration, wav, spk_id, wrd."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.rows import Row, lines_of
from bilevel.problems.speech.data.records import Utterance

_ROOTS = ("$data_root", "{data_root}")


def recognises(path: Path) -> bool:
    """Whether the header has SpeechBrain's columns."""
    return path.is_file() and path.suffix == ".csv" and {"ID", "wav"} <= set(_header(path))


def read(path: Path) -> list[Utterance]:
    """One utterance a row; ``$data_root`` stands for the manifest's folder."""
    missing = {"ID", "duration", "wav"} - set(_header(path))
    if missing:
        raise DatasetError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(_header(path))}"
        )
    found = []
    text = "\n".join(line for _, line in lines_of(path))
    for number, values in enumerate(csv.DictReader(io.StringIO(text), skipinitialspace=True), 2):
        row = Row(values, f"{path}, row {number}")
        wav = row.text("wav")
        for root in _ROOTS:
            wav = wav.replace(root, str(path.parent))
        found.append(
            Utterance(
                id=row.text("ID"), path=path.parent / wav, duration=row.seconds("duration"),
                text=row.optional("wrd"), speaker=row.optional("spk_id"),
            )
        )  # fmt: skip
    return found


def _header(path: Path) -> list[str]:
    _, first = next(lines_of(path), ("", ""))
    return [name.strip() for name in first.split(",")]
