"""SpeechBrain's manifests: CSV with ID, duration, wav, spk_id, wrd."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.rows import Row, opened
from bilevel.problems.speech.data.records import Utterance

_ROOTS = ("$data_root", "{data_root}")


def recognises(path: Path) -> bool:
    """Whether the header has SpeechBrain's columns."""
    return path.is_file() and path.suffix == ".csv" and {"ID", "wav"} <= set(_header(_lines(path)))


def read(path: Path) -> list[Utterance]:
    """One utterance a row; ``$data_root`` stands for the manifest's folder."""
    lines = _lines(path)
    header = _header(lines)
    missing = {"ID", "duration", "wav"} - set(header)
    if missing:
        raise DatasetError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(header)}"
        )
    return [_utterance(_row(header, values, place), path.parent) for place, values in lines]


def _utterance(row: Row, folder: Path) -> Utterance:
    wav = row.text("wav")
    for root in _ROOTS:
        wav = wav.replace(root, str(folder))
    return Utterance(
        id=row.text("ID"), path=folder / wav, duration=row.seconds("duration"),
        text=row.optional("wrd"), speaker=row.optional("spk_id"),
    )  # fmt: skip


def _row(header: list[str], values: list[str], place: str) -> Row:
    if len(values) != len(header):
        raise DatasetError(
            f"{place} has {len(values)} fields, and the header {len(header)}: put a text with a "
            "comma into quotation marks"
        )
    return Row(dict(zip(header, values, strict=True)), place)


def _header(lines: Iterator[tuple[str, list[str]]]) -> list[str]:
    _, names = next(lines, ("", []))
    return [name.strip() for name in names]


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The fields of every line that is not blank, the header's too, with what messages call it."""
    with opened(path, newline="") as text:
        reader = csv.reader(text, skipinitialspace=True, strict=True)
        try:
            for values in reader:
                if values not in ([], [""]):
                    yield f"{path}, line {reader.line_num}", values
        except csv.Error as error:
            raise DatasetError(f"{path}, line {reader.line_num}: {error}") from error
