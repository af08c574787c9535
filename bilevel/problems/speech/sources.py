"""Where the stages of an experiment take their batches from: memory, or files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from bilevel.distributed import rank, world_size
from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data import SpeechBatches, SpeechCorpus, Utterance, in_pieces
from bilevel.problems.speech.data.audio import check_audio, measured
from bilevel.problems.speech.data.batches import SHORTEST
from bilevel.problems.speech.inputs import FrontEnd, SpeechInputs
from bilevel.problems.speech.store import FeatureStore

#: Utterances of the training voices that calibration and probes look at.
_SAMPLED = 400


class SpeechSource(Protocol):
    """Loaders for every stage."""

    def pretraining(self, seed: int) -> Iterable[Any]:
        """Batches without labels, in an order of the seed's."""

    def sampled(self) -> Iterable[SpeechInputs]:
        """A few hundred utterances, from all of the training speech."""

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        """The utterances to learn to recognise, whole, in an order of the seed's."""

    def tested(self) -> Iterable[SpeechInputs]:
        """The utterances to be recognised, whole, and all of them."""

    @property
    def transcribed(self) -> list[Utterance]:
        """The utterances whose transcripts matter, to learn from and to test on."""

    @property
    def skipped(self) -> Mapping[str, Mapping[str, str]]:
        """Why this process could not use an utterance so far, by part and name.

        Of the test, nothing may be skipped.
        """


@dataclass(frozen=True)
class StoredSpeech:
    """A :class:`SpeechSource` in memory.

    Parameters
    ----------
    train, test
        Speech without labels; voices never heard.
    labelled_store
        Speech with labels.
    batch_size, crop_frames
        Crops of a pretraining step, and their feature frames.
    batch_frames
        Feature frames of a batch of whole utterances.
    skipped
        Why utterances are missing from the stores, by part and name.

    Raises
    ------
    DatasetError
        An utterance is both to be learnt from and to be tested on, or lacks its transcript.
    """

    train: FeatureStore
    labelled_store: FeatureStore
    test: FeatureStore
    batch_size: int = 16
    crop_frames: int = 160
    batch_frames: int = 4000
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labelled(self.labelled_store.utterances, self.test.utterances)
        _warn_of_heard(self.train.utterances, self.test.utterances)

    @classmethod
    def read(cls, corpus: SpeechCorpus) -> StoredSpeech:
        """The features of a corpus.

        Raises
        ------
        AudioError
            An utterance of the test cannot be used; of the others, those that can are taken.
        """
        train, labelled = (
            SpeechBatches(part, batch_seconds=60.0, shuffle=False)
            for part in (corpus.train, corpus.labelled)
        )
        return cls(
            FeatureStore.read(train),
            FeatureStore.read(labelled),
            FeatureStore.read(_whole(corpus.test, 60.0)),
            skipped=_merged({"train": [train.skipped], "labelled": [labelled.skipped]}),
        )

    def to(self, device: torch.device | str) -> StoredSpeech:
        """The same features on another device."""
        names = ("train", "labelled_store", "test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def pretraining(self, seed: int) -> Iterable[SpeechInputs]:
        _require_one_process()
        return self.train.crops(self.batch_size, self.crop_frames, seed)

    def sampled(self) -> Iterable[SpeechInputs]:
        return self.train.select(_spread(len(self.train))).batches(self.batch_frames)

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        _require_one_process()
        return self.labelled_store.batches(self.batch_frames, seed)

    def tested(self) -> Iterable[SpeechInputs]:
        return self.test.batches(self.batch_frames)

    @property
    def transcribed(self) -> list[Utterance]:
        return [*self.labelled_store.utterances, *self.test.utterances]


@dataclass(frozen=True)
class StreamedSpeech:
    """A :class:`SpeechSource` that reads files as they are needed.

    Parameters
    ----------
    train, labelled_part, test
        Utterances without labels, with labels to learn from, and to test on.
    device
        Where features are computed.
    batch_seconds
        Audio of a batch, of all processes together, padding included.
    labelled_seconds
        The same for batches of whole, labelled utterances.
    max_seconds
        Longer ones of ``train`` are cut into pieces, of ``labelled_part`` skipped. Those of
        ``test`` may have any length.
    workers
        Threads that read.

    Raises
    ------
    AudioError
        The file of an utterance of the test is missing or damaged; where the damage is further in,
        once it is read. An error rate over what is left would be of another test set.
    DatasetError
        An utterance is both to be learnt from and to be tested on, or lacks its transcript.
    """

    train: Sequence[Utterance]
    labelled_part: Sequence[Utterance]
    test: Sequence[Utterance]
    device: torch.device
    batch_seconds: float
    labelled_seconds: float = 120.0
    max_seconds: float = 30.0
    workers: int = 0
    _skipped: dict[str, list[dict[str, str]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_labelled(self.labelled_part, self.test)
        _warn_of_heard(self.train, self.test)
        for each in self.test:
            check_audio(each)

    def pretraining(self, seed: int) -> Iterable[Any]:
        return self._batches("train", self._pieces, self.batch_seconds, seed)

    def sampled(self) -> Iterable[SpeechInputs]:
        chosen = [self._pieces[i] for i in _spread(len(self._pieces))]
        return self._featured(self._batches("train", chosen, self.labelled_seconds))

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        seconds = self.labelled_seconds
        return self._featured(self._batches("labelled", self._measured, seconds, seed))

    def tested(self) -> Iterable[SpeechInputs]:
        return self._featured(_whole(self.test, self.labelled_seconds, self.workers))

    @property
    def transcribed(self) -> list[Utterance]:
        return [*self.labelled_part, *self.test]

    @property
    def skipped(self) -> Mapping[str, Mapping[str, str]]:
        return _merged(self._skipped)

    # Every loader needs the durations, which cost a look into each file that no manifest describes.

    @cached_property
    def _pieces(self) -> list[Utterance]:
        return in_pieces(measured(self.train), self.max_seconds)

    @cached_property
    def _measured(self) -> list[Utterance]:
        return measured(self.labelled_part)

    def _batches(
        self, part: str, utterances: Sequence[Utterance], seconds: float, seed: int | None = None
    ) -> SpeechBatches:
        """A part's loader: shared out among the processes in an order, whole without one."""
        batches = SpeechBatches(
            utterances,
            batch_seconds=seconds,
            max_seconds=self.max_seconds,
            seed=seed or 0,
            shuffle=seed is not None,
            rank=rank() if seed is not None else 0,
            world_size=world_size() if seed is not None else 1,
            workers=self.workers,
        )
        self._skipped.setdefault(part, []).append(batches.skipped)
        return batches

    def _featured(self, batches: SpeechBatches) -> FeatureBatches:
        return FeatureBatches(batches, self.device)


class FeatureBatches:
    """Turns a loader of waveforms into one of their features."""

    def __init__(self, batches: SpeechBatches, device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.front_end = FrontEnd().to(device)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.batches.set_epoch(epoch)

    def skip(self, count: int) -> None:
        """Begin the next pass ``count`` batches in."""
        self.batches.skip(count)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SpeechInputs]:
        for batch in self.batches:
            yield self.front_end(batch, self.device)


def _whole(utterances: Sequence[Utterance], seconds: float, workers: int = 0) -> SpeechBatches:
    """A loader that misses no utterance."""
    return SpeechBatches(
        utterances,
        batch_seconds=seconds,
        min_seconds=SHORTEST,
        max_seconds=None,
        shuffle=False,
        workers=workers,
        strict=True,
    )


def _spread(count: int) -> list[int]:
    """Places of the sample: evenly over a corpus, whose order may be that of its speakers."""
    sampled = min(count, _SAMPLED)
    return [i * count // sampled for i in range(sampled)]


def _merged(skipped: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """What the loaders of each part skipped, together."""
    found: dict[str, dict[str, str]] = {}
    for part, records in skipped.items():
        for record in filter(None, records):
            found.setdefault(part, {}).update(record)
    return found


def _check_labelled(labelled: Sequence[Utterance], test: Sequence[Utterance]) -> None:
    both = {_place(each) for each in labelled} & {_place(each) for each in test}
    if both:
        raise DatasetError(
            f"{len(both)} utterances are both to be learnt from and to be tested on, such as "
            f"{min(each.id for each in test if _place(each) in both)!r}: separate them"
        )
    utterances = [*labelled, *test]
    no_text = [each.id for each in utterances if not (each.text and each.text.strip())]
    no_phones = [each.id for each in utterances if not each.phones]
    if no_text and no_phones:
        bare = min(no_text, no_phones, key=len)
        raise DatasetError(
            f"{len(bare)} of the {len(utterances)} utterances to be learnt from and tested on have "
            f"no transcript, such as {bare[0]!r}: leave them out, or give them one"
        )


def _require_one_process() -> None:
    """All processes would learn from the same batches."""
    if world_size() > 1:
        raise OptionError(
            f"StoredSpeech is for one process, and here are {world_size()}: use StreamedSpeech, "
            "which shares its corpus out"
        )


def _warn_of_heard(train: Sequence[Utterance], test: Sequence[Utterance]) -> None:
    both = {_place(each) for each in train} & {_place(each) for each in test}
    if both:
        warnings.warn(
            f"{len(both)} of the {len(test)} utterances to be tested on are among those for "
            "pretraining: errors on them are not those on speech that was never heard",
            stacklevel=4,
        )


def _place(utterance: Utterance) -> tuple[Any, ...]:
    """Where its audio begins: the same file may go by two names, and two files by one."""
    path = utterance.path.resolve()
    return path, utterance.member, utterance.offset, utterance.channel
