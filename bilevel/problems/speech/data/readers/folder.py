"""Any folder of audio, with transcripts where a text file lies beside a recording."""

from __future__ import annotations

from pathlib import Path

from bilevel.problems.speech.data.records import Utterance

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def audio_files(path: Path) -> list[Path]:
    """The audio files below a folder, sorted."""
    return sorted(each for each in path.rglob("*") if each.suffix.lower() in AUDIO)


def recognises(path: Path) -> bool:
    """Whether this is a folder with audio in it."""
    return path.is_dir() and bool(audio_files(path))


def read(path: Path) -> list[Utterance]:
    """One utterance a file; ``name.txt`` beside ``name.wav`` is its transcript."""
    found = []
    for file in audio_files(path):
        transcript = file.with_suffix(".txt")
        found.append(
            Utterance(
                id=file.relative_to(path).with_suffix("").as_posix(),
                path=file,
                text=" ".join(transcript.read_text("utf-8").split())
                if transcript.is_file()
                else None,
            )
        )
    return found
