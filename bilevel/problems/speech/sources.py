"""Where the stages of an experiment take their batches from: memory, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from bilevel.distributed import rank, world_size
from bilevel.errors import DatasetError
from bilevel.problems.speech.data import SpeechBatches, SpeechCorpus, Utterance
from bilevel.problems.speech.inputs import FrontEnd, SpeechInputs
from bilevel.problems.speech.store import FeatureStore

#: Utterances of the training voices that calibration and probes look at.
_SAMPLED = 400


class SpeechSource(Protocol):
    """Loaders for every stage."""

    def pretraining(self, seed: int) -> Iterable[Any]:
        """Batches without labels, in an order of the seed's."""

    def sampled(self) -> Iterable[SpeechInputs]:
        """A few hundred utterances of the training voices, whole."""

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        """The utterances to learn to recognise, whole, in an order of the seed's."""

    def tested(self) -> Iterable[SpeechInputs]:
        """The utterances to be recognised, whole."""

    @property
    def transcribed(self) -> list[Utterance]:
        """The utterances whose transcripts matter: those to learn from and those to test on."""


@dataclass(frozen=True)
class StoredSpeech:
    """A corpus in memory.

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
    """

    train: FeatureStore
    labelled_store: FeatureStore
    test: FeatureStore
    batch_size: int = 16
    crop_frames: int = 160
    batch_frames: int = 4000

    def __post_init__(self) -> None:
        _require_apart(self.labelled_store.utterances, self.test.utterances)

    @classmethod
    def read(cls, corpus: SpeechCorpus) -> StoredSpeech:
        """The features of a corpus."""
        train, labelled, test = (
            FeatureStore.read(SpeechBatches(part, batch_seconds=60.0, shuffle=False))
            for part in (corpus.train, corpus.labelled, corpus.test)
        )
        return cls(train, labelled, test)

    def to(self, device: torch.device | str) -> StoredSpeech:
        """The same features on another device."""
        names = ("train", "labelled_store", "test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def pretraining(self, seed: int) -> Iterable[SpeechInputs]:
        return self.train.crops(self.batch_size, self.crop_frames, seed)

    def sampled(self) -> Iterable[SpeechInputs]:
        return self.train.select(range(min(_SAMPLED, len(self.train)))).batches(self.batch_frames)

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        return self.labelled_store.batches(self.batch_frames, seed)

    def tested(self) -> Iterable[SpeechInputs]:
        return self.test.batches(self.batch_frames)

    @property
    def transcribed(self) -> list[Utterance]:
        return [*self.labelled_store.utterances, *self.test.utterances]


@dataclass(frozen=True)
class StreamedSpeech:
    """A corpus that is read from its files as it is needed.

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
        Longer utterances are skipped, and reported.
    workers
        Reading processes.
    """

    train: Sequence[Utterance]
    labelled_part: Sequence[Utterance]
    test: Sequence[Utterance]
    device: torch.device
    batch_seconds: float
    labelled_seconds: float = 120.0
    max_seconds: float = 30.0
    workers: int = 0

    def __post_init__(self) -> None:
        _require_apart(self.labelled_part, self.test)

    def pretraining(self, seed: int) -> Iterable[Any]:
        return self._batches(self.train, self.batch_seconds, seed)

    def sampled(self) -> Iterable[SpeechInputs]:
        return self._featured(self.train[:_SAMPLED], None)

    def labelled(self, seed: int) -> Iterable[SpeechInputs]:
        return self._featured(self.labelled_part, seed)

    def tested(self) -> Iterable[SpeechInputs]:
        return self._featured(self.test, None)

    @property
    def transcribed(self) -> list[Utterance]:
        return [*self.labelled_part, *self.test]

    def _batches(
        self, utterances: Sequence[Utterance], seconds: float, seed: int | None, shard: bool = True
    ) -> SpeechBatches:
        return SpeechBatches(
            utterances,
            batch_seconds=seconds,
            max_seconds=self.max_seconds,
            seed=seed or 0,
            shuffle=seed is not None,
            rank=rank() if shard else 0,
            world_size=world_size() if shard else 1,
            workers=self.workers,
        )

    def _featured(self, utterances: Sequence[Utterance], seed: int | None) -> FeatureBatches:
        batches = self._batches(utterances, self.labelled_seconds, seed, shard=seed is not None)
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


def _require_apart(labelled: Sequence[Any], test: Sequence[Any]) -> None:
    both = {each.id for each in labelled} & {each.id for each in test}
    if both:
        raise DatasetError(
            f"{len(both)} utterances are both to be learnt from and to be tested on, such as "
            f"{min(both)!r}: separate them"
        )
