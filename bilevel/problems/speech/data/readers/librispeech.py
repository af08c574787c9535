"""LibriSpeech: ``speaker/chapter/speaker-chapter-number.flac`` with ``*.trans.txt`` beside them."""

from __future__ import annotations

from pathlib import Path

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.files import files_below
from bilevel.problems.speech.data.readers.rows import lines_of
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether there are transcripts of LibriSpeech's kind below a folder."""
    return any(map(_has_transcripts, files_below(path)))


def read(path: Path) -> list[Utterance]:
    """Every utterance with a transcript, which is put into lower case."""
    found = []
    for transcripts in sorted(filter(_has_transcripts, files_below(path))):
        for place, line in lines_of(transcripts):
            name, _, text = line.strip().partition(" ")
            if "/" in name:
                raise DatasetError(f"{place}: {name!r} is no utterance's name")
            audio = transcripts.with_name(f"{name}.flac")
            if not audio.is_file():
                raise DatasetError(f"{place}: there is no {audio.name} beside it")
            if not text:
                raise DatasetError(f"{place}: {name} has no transcript")
            found.append(
                Utterance(id=name, path=audio, text=text.lower(), speaker=name.split("-")[0])
            )
    return found


def _has_transcripts(file: Path) -> bool:
    return file.name.endswith(".trans.txt")
