"""A labelled corpus without a download: many espeak-ng voices read Python's documentation."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from tqdm import tqdm

from bilevel.errors import DatasetError
from bilevel.extras import require
from bilevel.options import check_count, check_positive
from bilevel.problems.speech.data.audio import SAMPLE_RATE
from bilevel.problems.speech.data.espeak_engine import synthesiser
from bilevel.problems.speech.data.phones import fold_phone
from bilevel.problems.speech.data.readers.rows import json_rows
from bilevel.problems.speech.data.records import Phone, Utterance
from bilevel.problems.speech.data.sentences import library_sentences

#: Changes when the same arguments would give another corpus.
FORMAT = 1
ACCENTS = ("en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
#: Timbres: those of the training voices, and those that only the test set has.
VARIANTS = (
    "m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f4", "f5", "klatt", "klatt3", "klatt4",
    "Andrea", "linda", "steph", "zac", "anika", "Andy", "belinda", "benjamin", "Denis", "ed",
    "iven", "john", "max", "michel", "norbert", "pedro", "quincy", "robert", "shelby", "travis",
)  # fmt: skip
TEST_VARIANTS = ("m5", "f3", "klatt2", "Annie", "Gene", "Lee", "paul", "rob")


@dataclass(frozen=True)
class SpeechCorpus:
    """Speech to pretrain on, a little to learn to recognise, and voices never heard."""

    train: list[Utterance]
    labelled: list[Utterance]
    test: list[Utterance]


def espeak_corpus(
    folder: str | Path | None = None,
    *,
    train_minutes: float = 30.0,
    labelled_minutes: float = 5.0,
    test_utterances: int = 200,
    seed: int = 0,
    progress: bool | None = None,
) -> SpeechCorpus:
    """Synthesise a corpus, or read it where it was synthesised before.

    Every utterance has a voice (an accent and a timbre), rate, pitch, noise (8 to 30 dB below the
    speech) and reverberation of its own, its text, and its phones with their times. The test set's
    timbres and sentences occur nowhere else; its size is that of the sentences set apart at most.

    Parameters
    ----------
    folder
        Where it is kept; by default in the cache folder (``BILEVEL_CACHE``, else the user's).
    train_minutes, labelled_minutes, test_utterances
        Sizes of the parts.
    seed
        Of every choice. The noise inside some of espeak-ng's voices is not repeatable, so two
        syntheses are alike, not identical; a kept corpus is.
    progress
        Show a progress bar; by default in a terminal.

    Raises
    ------
    MissingExtraError
        The extra ``speech`` is not installed.
    DatasetError
        The folder holds another corpus, a damaged one or something else, or cannot be made.
    """
    check_positive("train_minutes", train_minutes)
    check_positive("labelled_minutes", labelled_minutes)
    check_count("test_utterances", test_utterances)
    check_count("seed", seed, least=0)
    sizes = {
        "format": FORMAT,
        "train_minutes": float(train_minutes),
        "labelled_minutes": float(labelled_minutes),
        "test_utterances": test_utterances,
        "seed": seed,
    }
    place = Path(folder) if folder is not None else _cache(sizes)
    if not (place / "corpus.json").is_file():
        _synthesise(place, sizes, progress)
    return _read(place, sizes)


def _cache(sizes: dict[str, Any]) -> Path:
    pooch = require("pooch", "speech")
    root = os.environ.get("BILEVEL_CACHE") or pooch.os_cache("bilevel")
    name = "espeak-" + "-".join(f"{value:g}" for value in sizes.values())
    return Path(root).expanduser() / name


# Synthesis --------------------------------------------------------------------------------------


def _synthesise(place: Path, sizes: dict[str, Any], progress: bool | None) -> None:
    """Make the corpus beside its place, and move it there when it is whole."""
    try:
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise DatasetError(
                f"{place} is no empty folder and holds no corpus: give an empty or a new one"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as partial:
            made = Path(partial, place.name)
            made.mkdir()
            for stream, part in enumerate(_parts(sizes), start=1):
                _write(made, part, (sizes["seed"], stream), progress)
            content = {**sizes, "sentences": len(library_sentences())}
            (made / "corpus.json").write_text(json.dumps(content, indent=1) + "\n")
            _move(made, place)
    except OSError as error:
        raise DatasetError(f"no corpus can be made at {place}: {error}") from error


def _move(made: Path, place: Path) -> None:
    try:
        if place.is_dir():
            place.rmdir()
        made.rename(place)
    except OSError:
        if not (place / "corpus.json").is_file():  # which another process may have just made
            raise


@dataclass(frozen=True)
class _Part:
    """What is read by whom, until so much is spoken or no text is left."""

    name: str
    texts: Iterable[str]
    variants: Sequence[str]
    seconds: float


def _parts(sizes: dict[str, Any]) -> tuple[_Part, ...]:
    sentences = library_sentences()
    order = np.random.default_rng((sizes["seed"], 0)).permutation(len(sentences))
    tested = _tested(sizes, len(sentences))
    train = [sentences[i] for i in order[tested:]]
    return (
        _Part("train", cycle(train), VARIANTS, 60 * sizes["train_minutes"]),
        _Part("labelled", cycle(train[::-1]), VARIANTS, 60 * sizes["labelled_minutes"]),
        _Part("test", [sentences[i] for i in order[:tested]], TEST_VARIANTS, math.inf),
    )


def _tested(sizes: dict[str, Any], sentences: int) -> int:
    """Utterances of the test, each with a sentence of its own."""
    return int(min(sizes["test_utterances"], sentences // 4))


def _write(folder: Path, part: _Part, seed: tuple[int, int], progress: bool | None) -> None:
    (folder / part.name).mkdir()
    bar = tqdm(
        total=part.seconds, desc=f"espeak-ng: {part.name}", unit="s of speech", unit_scale=True,
        leave=False, disable=None if progress is None else not progress,
    )  # fmt: skip
    spoken = 0.0
    with bar, (folder / f"{part.name}.jsonl").open("w", encoding="utf-8") as manifest:
        for number, text in enumerate(part.texts):
            if spoken >= part.seconds:
                break
            random = np.random.default_rng((*seed, number))
            record = _speak(folder, part, f"{part.name}-{number:06d}", text, random)
            manifest.write(json.dumps(record, ensure_ascii=False) + "\n")
            spoken += record["duration"]
            bar.update(record["duration"])


def _speak(
    folder: Path, part: _Part, name: str, text: str, random: np.random.Generator
) -> dict[str, Any]:
    accent, variant = random.choice(ACCENTS), random.choice(part.variants)
    engine = synthesiser()
    samples, begins = engine.speak(
        text, f"{accent}+{variant}", int(random.integers(130, 221)), int(random.integers(20, 86))
    )
    clean = require("soxr", "speech").resample(samples, engine.sample_rate, SAMPLE_RATE)
    path = folder / part.name / f"{name}.flac"
    require("soundfile", "speech").write(path, _recorded(clean, random), SAMPLE_RATE)
    seconds = len(clean) / SAMPLE_RATE
    ends = [at for at, _ in begins[1:]] + [seconds]
    phones = [
        (fold_phone(symbol), round(at, 4), round(min(end, seconds), 4))
        for (at, symbol), end in zip(begins, ends, strict=True)
        if min(end, seconds) > at
    ]
    return {
        "id": name, "path": f"{part.name}/{path.name}", "duration": seconds, "text": text,
        "speaker": f"{accent}+{variant}", "phones": phones,
    }  # fmt: skip


def _recorded(clean: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """The speech in a room, with noise, at peak 0.7."""
    decay = random.uniform(0.02, 0.12)
    time = np.arange(int(4 * decay * SAMPLE_RATE)) / SAMPLE_RATE
    room = random.normal(size=len(time)) * np.exp(-time / decay)
    room *= random.uniform(0.0, 0.5) / np.sqrt(np.square(room).sum())
    room[0] += 1.0
    speech = fftconvolve(clean, room)[: len(clean)]
    # Noise with a spectrum that falls by up to 6 dB an octave.
    spectrum = np.fft.rfft(random.normal(size=len(clean)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 50.0) ** random.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, len(clean))
    power = np.mean(speech**2) / np.mean(noise**2)
    speech = speech + noise * np.sqrt(power / 10 ** (random.uniform(8.0, 30.0) / 10))
    scaled: NDArray[np.float32] = (0.7 * speech / np.abs(speech).max()).astype(np.float32)
    return scaled


# Reading ----------------------------------------------------------------------------------------


def _read(place: Path, sizes: dict[str, Any]) -> SpeechCorpus:
    record = place / "corpus.json"
    try:
        found = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(record, repr(error)) from error
    other = {name: found.get(name) for name in sizes if found.get(name) != sizes[name]}
    if other:
        raise DatasetError(
            f"{place} holds another corpus ({other}), and { ({n: sizes[n] for n in other}) } was "
            "asked for: give another folder"
        )
    parts = {name: list(_utterances(place, name)) for name in ("train", "labelled", "test")}
    for name in ("train", "labelled"):
        if sum(each.duration or 0.0 for each in parts[name]) < 60 * sizes[f"{name}_minutes"]:
            raise _damaged(place / f"{name}.jsonl", "utterances are missing")
    if len(parts["test"]) < _tested(sizes, found.get("sentences", 0)):
        raise _damaged(place / "test.jsonl", "utterances are missing")
    return SpeechCorpus(**parts)


def _utterances(place: Path, part: str) -> Iterator[Utterance]:
    manifest = place / f"{part}.jsonl"
    try:
        for row in json_rows(manifest):
            phones = tuple(Phone(*each) for each in row.values["phones"])
            yield Utterance(**{**row.values, "path": place / row.text("path"), "phones": phones})
    except (DatasetError, KeyError, TypeError) as error:
        raise _damaged(manifest, repr(error)) from error


def _damaged(file: Path, fault: str) -> DatasetError:
    return DatasetError(
        f"{file} is damaged ({fault}): remove the folder {file.parent} to make it again"
    )
