r"""Language models in files: the ARPA format, plain or compressed by gzip.

A file lists, after a header with their numbers, the n-grams of each length: the log10 probability,
the words, and the log10 back-off weight where longer n-grams may begin with these words::

    \data\
    ngram 1=4
    ngram 2=1

    \1-grams:
    -0.5  <s>  -0.3
    ...
    \end\
"""

from __future__ import annotations

import codecs
import gzip
import math
import os
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np

from bilevel.errors import DatasetError
from bilevel.files import replacing
from bilevel.problems.speech.recognition.ngram import (
    BEGIN,
    END,
    UNKNOWN,
    UNKNOWN_LOG10,
    Level,
    NGramModel,
    NGramRowError,
    build_level,
    listed,
)

#: Characters of a line that messages quote.
_SHOWN = 60
#: Logarithms at or below this are no finite float32.
_LOWEST = -3.4e38


def read_arpa(path: str | os.PathLike[str]) -> NGramModel:
    """Read a model of any order.

    ``<UNK>`` stands for ``<unk>``; where a file has neither, unknown words have a log10 probability
    of -100, as in kenlm.

    Raises
    ------
    DatasetError
        the file is missing or damaged, or a line is not what the format asks for; named by number.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            return _Reader(path, file).model()
    except OSError as error:
        raise DatasetError(f"the language model {path} cannot be read: {error}") from error
    except (EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is a damaged gzip file ({error}); download it again") from error


def write_arpa(model: NGramModel, path: str | os.PathLike[str]) -> None:
    """Write a model; compressed where the name ends in ``.gz``.

    Raises
    ------
    DatasetError
        the file cannot be written; one that was there stays.
    """
    path = Path(path)
    with (
        replacing(path) as beside,
        gzip.open(beside, "wb") if path.suffix == ".gz" else beside.open("wb") as file,
    ):
        for line in _lines(model):
            file.write(line.encode() + b"\n")


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


def _lines(model: NGramModel) -> Iterator[str]:
    yield "\\data\\"
    for length, level in enumerate(model.levels, start=1):
        yield f"ngram {length}={len(level.keys)}"
    for length, level in enumerate(model.levels, start=1):
        yield f"\n\\{length}-grams:"
        longest = length == model.order
        for row, gram in enumerate(listed(model, length).tolist()):
            words = " ".join(model.words[index] for index in gram)
            # Seven significant digits and more keep a float32 exactly.
            backoff = "" if longest else f"\t{level.backoff[row]:.9g}"
            yield f"{level.log10[row]:.9g}\t{words}{backoff}"
    yield "\n\\end\\"


def _shown(line: bytes | None) -> str:
    """A part of the file, for messages."""
    if line is None:
        return "the end of the file"
    text = line.decode(errors="backslashreplace")
    return f"'{text[:_SHOWN]}...'" if len(text) > _SHOWN else f"'{text}'"


class _Reader:
    """Reads line by line; ``line`` is the number of the last one."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.line = 0
        self.index: dict[bytes, int] = {}

    def model(self) -> NGramModel:
        counts = self._header()
        levels: list[Level] = []
        for length, count in enumerate(counts, start=1):
            levels.append(self._section(length, count, levels, last=length == len(counts)))
        self._expect(b"\\end\\")
        while (line := self._next()) is not None:  # to the end, where gzip has its checksum
            if line:
                self._fail(f"found {_shown(line)} after \\end\\")
        return NGramModel(tuple(self._word(word) for word in self.index), tuple(levels))

    def _header(self) -> list[int]:
        while (line := self._next()) is not None:  # a file may begin with remarks
            if line == b"\\data\\":
                break
        else:
            self._fail("no line \\data\\ in the file, which an ARPA language model begins with")
        counts: list[int] = []
        while line := self._next():
            name, _, number = line.partition(b"=")
            if name.split() != [b"ngram", str(len(counts) + 1).encode()] or not (
                number.isdigit() and len(number) < 16
            ):
                self._fail(f"found {_shown(line)}, expected 'ngram {len(counts) + 1}=NUMBER'")
            counts.append(int(number))
        if not counts:
            self._fail("the header gives no numbers of n-grams ('ngram 1=NUMBER')")
        return counts

    def _section(self, length: int, count: int, shorter: list[Level], *, last: bool) -> Level:
        self._expect(f"\\{length}-grams:".encode())
        first = self.line + 1
        grams, log10, backoff = array("q"), array("f"), array("f")
        while line := self._next():
            if line.startswith(b"\\"):
                self._fail(f"found {_shown(line)} after {len(log10)} of {count} {length}-grams")
            fields = line.split()
            if not length + 1 <= len(fields) <= length + 1 + (not last):
                self._fail(
                    f"{len(fields)} fields, expected a log10 probability, {length} words"
                    + ("" if last else ", and at most a back-off weight")
                )
            log10.append(self._number(fields[0], "log10 probability", 0.0))
            grams.extend(self._words(fields[1 : length + 1], new=length == 1))
            weight = fields[length + 1] if len(fields) > length + 1 else b"0"
            backoff.append(self._number(weight, "back-off weight", 1000.0))
        if len(log10) != count:
            self._fail(f"the {length}-grams end after {len(log10)}, the header promised {count}")
        if length == 1:
            self._complete(grams, log10, backoff)
        try:
            return build_level(
                shorter,
                np.asarray(grams, dtype=np.int64).reshape(-1, length),
                np.asarray(log10, dtype=np.float32),
                np.asarray(backoff, dtype=np.float32),
                len(self.index),
            )
        except NGramRowError as error:
            self.line = first + error.row
            self._fail(f"the {length}-gram is out of place: {error}")

    def _complete(self, grams: array[int], log10: array[float], backoff: array[float]) -> None:
        """Without a begin or an end no sentence has a score; unknown words can be added."""
        for word in (BEGIN, END):
            if word.encode() not in self.index:
                self._fail(f"the 1-grams lack {word}, which every sentence needs")
        if UNKNOWN.encode() not in self.index:
            grams.append(self.index.setdefault(UNKNOWN.encode(), len(self.index)))
            log10.append(UNKNOWN_LOG10)
            backoff.append(0.0)

    def _words(self, fields: list[bytes], *, new: bool) -> list[int]:
        names = [UNKNOWN.encode() if word == b"<UNK>" else word for word in fields]
        if new:
            return [self.index.setdefault(name, len(self.index)) for name in names]
        try:
            return [self.index[name] for name in names]
        except KeyError as error:
            self._fail(f"the word {_shown(error.args[0])} is not among the 1-grams")

    def _number(self, text: bytes, name: str, largest: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not _LOWEST < value <= largest:
            self._fail(
                f"the {name} is {_shown(text)}, expected a finite number of at most {largest:g}"
            )
        return value

    def _word(self, word: bytes) -> str:
        try:
            return word.decode()
        except UnicodeDecodeError:
            raise DatasetError(
                f"{self.path}: the word {word!r} is not UTF-8; convert the file to UTF-8"
            ) from None

    def _next(self) -> bytes | None:
        """The next line without its blanks; ``None`` at the end of the file."""
        line = self.file.readline()
        if self.line == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        self.line += bool(line)
        return line.strip() if line else None

    def _expect(self, wanted: bytes) -> None:
        while (line := self._next()) == b"":
            pass
        if line != wanted:
            self._fail(f"found {_shown(line)}, expected {_shown(wanted)}")

    def _fail(self, reason: str) -> NoReturn:
        raise DatasetError(f"{self.path}, line {self.line}: {reason}")
