"""Rows of manifests, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bilevel.errors import DatasetError


class Row:
    """A row of a manifest, by column; complains with the file and the line.

    Parameters
    ----------
    values
        Column -> value.
    place
        What messages call it.
    """

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def text(self, name: str) -> str:
        """A column that has to be there and not empty."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise DatasetError(
                f"{self.place}: {name!r} is {value!r}, expected a text; the row has "
                f"{', '.join(map(str, self.values)) or 'no columns'}"
            )
        return value

    def optional(self, name: str) -> str | None:
        """A text column that may be missing or empty."""
        value = self.values.get(name)
        return None if value in (None, "") else str(value)

    def seconds(self, name: str, default: float | None = None) -> float | None:
        """A column of seconds, at least 0."""
        value = self.values.get(name)
        if value in (None, ""):
            return default
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise DatasetError(f"{self.place}: {name} is {value!r}, expected seconds >= 0")
        return number

    def path(self, name: str, folder: Path) -> Path:
        """A file, relative to a folder unless absolute."""
        return folder / self.text(name)


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file, plain or gzipped, with what messages call them."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON lines file."""
    for place, line in lines_of(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{place} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise DatasetError(f"{place} is {type(value).__name__}, expected a JSON object")
        yield Row(value, place)


def first_object(path: Path) -> dict[str, Any]:
    """The first object of a JSON lines file, or nothing where it is none."""
    if not path.is_file() or not path.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        return {}
    try:
        return next(json_rows(path), Row({}, "")).values
    except DatasetError:
        return {}
