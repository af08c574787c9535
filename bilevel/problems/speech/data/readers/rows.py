"""Rows of manifests, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

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
        """A column of text that may be missing or blank; numbers are read as text."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DatasetError(f"{self.place}: {name!r} is {value!r}, expected a text")
        return str(value) if str(value).strip() else None

    def seconds(self, name: str, default: float | None = None, least: float = 0.0) -> float | None:
        """A column of seconds, at least 0 unless told otherwise."""
        value = self.values.get(name)
        if value in (None, ""):
            return default
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            raise DatasetError(f"{self.place}: {name} is {value!r}, expected seconds >= {least:g}")
        return number

    def rows(self, name: str) -> list[Row]:
        """A column with a list of objects, or none."""
        value = self.values.get(name) or []
        if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
            raise DatasetError(f"{self.place}: {name} is {value!r}, expected a list of objects")
        return [Row(each, f"{self.place}, {name}[{i}]") for i, each in enumerate(value)]

    def path(self, name: str, folder: Path) -> Path:
        """A file, relative to a folder unless absolute."""
        return folder / self.text(name)


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, plain or gzipped.

    Raises
    ------
    DatasetError
        The file cannot be read, here or later.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        opener: Any = gzip.open if zipped else open
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file, plain or gzipped, with what messages call them."""
    with opened(path) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"{path}, line {number}", line.rstrip("\n")


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON lines file."""
    for place, line in lines_of(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise DatasetError(f"{place} is {type(value).__name__}, expected a JSON object")
        yield Row(value, place)


def first_object(path: Path) -> dict[str, Any]:
    """The first object of a file that is named as JSON lines are, or nothing of another."""
    if not path.is_file() or not path.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        return {}
    return next(json_rows(path), Row({}, "")).values
