"""YODAS shards: ``audio/N.tar.gz`` with ``text/N.txt`` and ``duration/N.txt``.

To reach a segment of a gzipped shard, all before it is unpacked: to train on many, unpack the
shards first, ``gunzip audio/*.tar.gz``; ``audio/N.tar`` is read as well, and each segment at once.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path, PurePosixPath

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.files import files_below
from bilevel.problems.speech.data.readers.rows import Row, lines_of
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether a language's folder, or one above such folders, is given."""
    return bool(_shards(path))


def read(path: Path) -> list[Utterance]:
    """The segments of every shard; captions are noisy, and missing ones are no error."""
    found = []
    for shard in _shards(path):
        folder, name = shard.parent.parent, shard.name.removesuffix(".gz").removesuffix(".tar")
        texts = _table(folder / "text" / f"{name}.txt")
        durations = _table(folder / "duration" / f"{name}.txt", required=True)
        language = folder.name.rstrip("0123456789") or None
        segments = [(PurePosixPath(member).stem, member) for member in _members(shard)]
        for key, member in segments:
            if key not in durations:
                raise DatasetError(f"{shard}: the duration of {key} is not in duration/{name}.txt")
            row = Row({"duration": durations[key]}, f"{folder / 'duration' / name}.txt, {key}")
            found.append(
                Utterance(
                    id=key, path=shard, member=member, duration=row.seconds("duration"),
                    text=texts.get(key), speaker=key.rsplit("-", 3)[0], language=language,
                )
            )  # fmt: skip
        absent = durations.keys() - {key for key, _ in segments}
        if absent:
            raise DatasetError(
                f"{shard} is not whole: it lacks {len(absent)} of the {len(durations)} segments in "
                f"duration/{name}.txt, such as {min(absent)}"
            )
    return found


def _shards(path: Path) -> list[Path]:
    return sorted(
        each
        for each in files_below(path)
        if each.parent.name == "audio"
        and each.name.endswith((".tar.gz", ".tar"))
        and (each.parent.parent / "duration").is_dir()
    )


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
            names = [each.name for each in archive if each.isfile()]
            assert archive.fileobj is not None
            while archive.fileobj.read(2**20):  # to the end, where gzip has its check sum
                pass
            return names
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{shard} cannot be unpacked: {error}") from error
