"""Corpora in the formats that people have them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data.readers import (
    ami,
    folder,
    lhotse,
    librispeech,
    nemo,
    speechbrain,
    yodas,
)
from bilevel.problems.speech.data.records import Utterance

_RECOGNISED = {
    "librispeech": librispeech,
    "ami": ami,
    "yodas": yodas,
    "nemo": nemo,
    "speechbrain": speechbrain,
    "lhotse": lhotse,
}
_READ: dict[str, Callable[[Path], list[Utterance]]] = {
    **{name: module.read for name, module in _RECOGNISED.items()},
    "ami-ihm": ami.read_ihm,
    "ami-sdm": ami.read_sdm,
    "folder": folder.read,
}
FORMATS = tuple(_READ)
"""The names that :func:`read_corpus` takes."""


def read_corpus(path: str | Path, format: str = "auto") -> list[Utterance]:
    """Read what a corpus holds; its audio is read later.

    =============== ==========================================================================
    ``librispeech``  a tree of ``*.flac`` with ``*.trans.txt`` beside them, put into lower case
    ``ami``          AMI's meetings, whole recordings; ``ami-ihm`` and ``ami-sdm`` where both lie
    ``yodas``        shards: ``audio/*.tar`` or ``*.tar.gz``, ``text/*.txt``, ``duration/*.txt``
    ``nemo``         JSON lines with ``audio_filepath``
    ``speechbrain``  CSV with ``ID``, ``duration``, ``wav``
    ``lhotse``       cuts as JSON lines, plain or gzipped
    ``folder``       any audio below a folder, ``name.txt`` beside it
    =============== ==========================================================================

    AMI's recordings are to be cut by :func:`in_pieces`; its segments and words are read from
    Lhotse's cuts.

    To reach a segment of a gzipped shard, all before it is unpacked: to train on YODAS, unpack its
    shards first, ``gunzip audio/*.tar.gz``.

    Parameters
    ----------
    path
        A folder or a manifest.
    format
        One of :data:`FORMATS`; ``"auto"`` recognises the first six, and takes a folder of audio for
        what it is otherwise.

    Raises
    ------
    DatasetError
        There is nothing at the path, nothing recognised, more than one format, a broken row (its
        file and line are named), or a name that occurs twice.
    OptionError
        The format is unknown.
    """
    path = Path(path)
    if format != "auto" and format not in _READ:
        raise OptionError(f"format={format!r}, expected auto or one of {', '.join(FORMATS)}")
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise DatasetError(f"there is no corpus at {path}: {error}") from error
    name = _recognise(path) if format == "auto" else format
    found = _READ[name](path)
    if not found:
        raise DatasetError(f"{path}, read as {name}, holds no utterance")
    twice = [each for each, count in Counter(each.id for each in found).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{path}, read as {name}: {len(twice)} names occur more than once, such as {twice[0]!r}"
        )
    return found


def _recognise(path: Path) -> str:
    if path.is_file() and path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty")
    names = [name for name, module in _RECOGNISED.items() if module.recognises(path)]
    if len(names) > 1:
        raise DatasetError(
            f"{path} could be {' or '.join(names)}: say which by format=, or give a smaller folder"
        )
    if names:
        return names[0]
    if folder.recognises(path):
        return "folder"
    raise DatasetError(
        f"{path} is no corpus of a known format ({', '.join(FORMATS)}): a folder needs audio below "
        "it, a manifest the columns of its format"
    )
