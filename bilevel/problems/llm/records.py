"""What models are fine-tuned on: instructions with a response, and preferences between two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bilevel.errors import DatasetError
from bilevel.extras import require


@dataclass(frozen=True)
class Instruction:
    """A prompt and the response to learn."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Preference:
    """A prompt, the response that people prefer, and the one that they do not."""

    prompt: str
    chosen: str
    rejected: str


Record = TypeVar("Record", Instruction, Preference)

#: How dialogues are written where a data set gives the bare text.
TEMPLATE = "User: {}\nAssistant: "

#: Columns of well-known data sets, by the names of the record's own fields.
KNOWN_COLUMNS = {
    "Open-Orca/OpenOrca": {"prompt": "question", "response": "response"},
    "Dahoas/rm-hh-rlhf": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}


def read_records(
    kind: type[Record],
    source: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    template: str = TEMPLATE,
    first: int = 0,
    count: int | None = None,
    streaming: bool = False,
) -> Iterator[Record]:
    """Records of a JSONL file, or of a data set that ``datasets.load_dataset`` knows.

    Parameters
    ----------
    kind
        :class:`Instruction` or :class:`Preference`.
    source
        Path of a ``.jsonl`` file, or the name of a data set.
    split
        Of a data set.
    columns
        Where each field of the record is found, ``{"response": "answer"}``; by default under the
        field's own name, and as :data:`KNOWN_COLUMNS` says.
    template
        Written around the prompt, in the place of its ``{}``; ``"{}"`` alone leaves it as it is.
    first, count
        The rows to read: ``count`` of them, from number ``first`` on; all by default.
    streaming
        Read a data set row by row as it is needed, in the place of downloading all of it.

    Raises
    ------
    DatasetError
        A file that is missing or malformed, a row without a field or with an empty one; the message
        names the row. Fewer rows than ``count``, or a template without its place.
    """
    if first < 0 or (count is not None and count < 1):
        raise DatasetError(f"rows {first} and the {count} after: first >= 0 and count >= 1 needed")
    if template.count("{}") != 1:
        raise DatasetError(f"template={template!r}, expected a text with one {{}} for the prompt")
    columns = {**KNOWN_COLUMNS.get(str(source), {}), **(columns or {})}
    unknown = set(columns) - set(kind.__dataclass_fields__)
    if unknown:
        raise DatasetError(
            f"columns names {sorted(unknown)}, fields of {kind.__name__} are "
            f"{list(kind.__dataclass_fields__)}"
        )
    rows = (
        _jsonl(Path(source))
        if str(source).endswith(".jsonl")
        else _hub(str(source), split, streaming)
    )
    found = 0
    for number, row in rows:
        if number <= first:
            continue
        yield as_record(kind, row, columns, template, f"{source}, row {number}")
        found += 1
        if found == count:
            return
    if count is not None or not found:
        wanted = "at least one" if count is None else str(count)
        rows_from = f" after the first {first}" if first else ""
        raise DatasetError(f"{source} has {found} rows{rows_from}, and {wanted} are wanted")


def as_record(
    kind: type[Record],
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    template: str,
    place: str,
) -> Record:
    """One record from a row, checked."""
    fields = {}
    for field in kind.__dataclass_fields__:
        column = columns.get(field, field)
        if column not in row:
            raise DatasetError(
                f"{place} has no {column!r} ({field}); it has {sorted(row)}. Name another column: "
                f"columns={{{field!r}: ...}}"
            )
        value = row[column]
        if not isinstance(value, str):
            raise DatasetError(f"{place}: {column} is a {type(value).__name__}, expected text")
        if not value.strip():
            raise DatasetError(f"{place}: {column} is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # half of a character that JSON has cut in two
            raise DatasetError(f"{place}: {column} is not valid text ({error})") from error
        fields[field] = template.replace("{}", value) if field == "prompt" else value
    if kind is Preference and fields["chosen"] == fields["rejected"]:
        raise DatasetError(f"{place}: chosen and rejected are the same, so nothing is preferred")
    return kind(**fields)


def write_records(records: Iterable[Instruction | Preference], path: str | Path) -> None:
    """Records as JSONL, one a line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.__dict__, ensure_ascii=False) + "\n")


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}, row {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DatasetError(
                f"{path}, row {number} is a {type(row).__name__}, expected an object"
            )
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, row {number} is not UTF-8 text ({error})") from error


def _hub(name: str, split: str, streaming: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    datasets = require("datasets", "llm")
    try:
        yield from enumerate(datasets.load_dataset(name, split=split, streaming=streaming), start=1)
    except Exception as error:  # whatever a hub, a cache or a script of theirs can raise
        raise DatasetError(
            f"{name!r}, split {split!r}, cannot be loaded ({type(error).__name__}: {error}). Give "
            "the name of a data set, or the path of a .jsonl file"
        ) from error
