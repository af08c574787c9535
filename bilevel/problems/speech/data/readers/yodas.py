"""YODAS shards: ``audio/N.tar.gz`` with ``text/N.txt`` and ``duration/N.txt``."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.rows import Row, lines_of
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether a language's folder, or one above such folders, is given."""
    return bool(_shards(path))


def read(path: Path) -> list[Utterance]:
    """The segments of every shard; captions are noisy, and missing ones are no error."""
    found = []
    for shard in _shards(path):
        folder, name = shard.parent.parent, shard.name.removesuffix(".tar.gz")
        texts = _table(folder / "text" / f"{name}.txt")
        durations = _table(folder / "duration" / f"{name}.txt", required=True)
        language = folder.name.rstrip("0123456789") or None
        for member in _members(shard):
            key = PurePosixPath(member).stem
            if key not in durations:
                raise DatasetError(f"{shard}: the duration of {key} is not in duration/{name}.txt")
            row = Row({"duration": durations[key]}, f"{folder / 'duration' / name}.txt, {key}")
            found.append(
                Utterance(
                    id=key, path=shard, member=member, duration=row.seconds("duration"),
                    text=texts.get(key), speaker=key.rsplit("-", 3)[0], language=language,
                )
            )  # fmt: skip
    return found


def _shards(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = sorted(path.rglob("audio/*.tar.gz"))
    return [each for each in found if (each.parent.parent / "duration").is_dir()]


def _table(path: Path, *, required: bool = False) -> dict[str, str]:
    if not path.is_file():
        if required:
            raise DatasetError(f"{path} is missing: a shard needs its durations")
        return {}
    table = {}
    for place, line in lines_of(path):
        key, _, value = line.strip().partition(" ")
        if not value:
            raise DatasetError(f"{place}: {line!r}, expected a name and a value")
        table[key] = value.strip()
    return table


def _members(shard: Path) -> list[str]:
    try:
        with tarfile.open(shard) as archive:
            return [each.name for each in archive if each.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{shard} cannot be unpacked: {error}") from error
