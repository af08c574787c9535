"""Any folder of audio, with transcripts where a text file lies beside a recording."""

from __future__ import annotations

from pathlib import Path

from bilevel.problems.speech.data.readers.files import files_below
from bilevel.problems.speech.data.readers.rows import opened
from bilevel.problems.speech.data.records import Utterance

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def audio_files(path: Path) -> list[Path]:
    """The audio files below a folder, sorted."""
    return sorted(each for each in files_below(path) if each.suffix.lower() in AUDIO)


def recognises(path: Path) -> bool:
    """Whether this is a folder with audio in it."""
    return bool(audio_files(path))


def read(path: Path) -> list[Utterance]:
    """One utterance a file; ``name.txt`` beside ``name.wav`` is its transcript."""
    return [
        Utterance(
            id=file.relative_to(path).with_suffix("").as_posix(),
            path=file,
            text=_text(file.with_suffix(".txt")),
        )
        for file in audio_files(path)
    ]


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    with opened(path) as file:
        return " ".join(file.read().split()) or None
