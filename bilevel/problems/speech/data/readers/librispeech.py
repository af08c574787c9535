"""LibriSpeech: ``speaker/chapter/speaker-chapter-number.flac`` with ``*.trans.txt`` beside them."""

from __future__ import annotations

from pathlib import Path

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.rows import lines_of
from bilevel.problems.speech.data.records import Utterance


def recognises(path: Path) -> bool:
    """Whether there are transcripts of LibriSpeech's kind below a folder."""
    return path.is_dir() and next(path.rglob("*.trans.txt"), None) is not None


def read(path: Path) -> list[Utterance]:
    """Every utterance with a transcript."""
    found = []
    for transcripts in sorted(path.rglob("*.trans.txt")):
        for place, line in lines_of(transcripts):
            name, _, text = line.strip().partition(" ")
            audio = transcripts.with_name(f"{name}.flac")
            if not audio.is_file():
                raise DatasetError(f"{place}: there is no {audio.name} beside it")
            if not text:
                raise DatasetError(f"{place}: {name} has no transcript")
            found.append(
                Utterance(id=name, path=audio, text=text.lower(), speaker=name.split("-")[0])
            )
    return found
