"""Features of a corpus that fits in memory, and loaders over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.speech.inputs import FrontEnd, SpeechInputs
from bilevel.problems.speech.noise import key_of
from bilevel.problems.speech.options import SUBSAMPLING

if TYPE_CHECKING:
    from bilevel.problems.speech.data import Utterance


class FeatureStore:
    """Normalised features of many utterances, in half precision, on one device.

    An hour of speech takes 58 MB. Small models on small corpora then train as fast as they compute;
    :class:`~bilevel.problems.speech.data.SpeechBatches` reads larger corpora from their files.

    Attributes
    ----------
    features
        One [F, 80] tensor an utterance.
    utterances
        Whose features they are.
    """

    def __init__(self, features: Sequence[Tensor], utterances: Sequence[Utterance]) -> None:
        if not features:
            raise DatasetError("no utterance is left to compute features of")
        if len(features) != len(utterances):
            raise DatasetError(
                f"features of {len(features)} utterances, and {len(utterances)} names"
            )
        self.features = list(features)
        self.utterances = list(utterances)

    @classmethod
    def read(cls, batches: Iterable[Any], device: torch.device | str = "cpu") -> FeatureStore:
        """The features of every utterance of one pass over a loader of waveforms."""
        features, utterances = [], []
        front_end = FrontEnd().to(device)
        for batch in batches:
            inputs = front_end(batch, torch.device(device))
            for row, count, utterance in zip(
                inputs.features, inputs.frame_counts.tolist(), batch.utterances, strict=True
            ):
                features.append(row[:count].half())
                utterances.append(utterance)
        return cls(features, utterances)

    def __len__(self) -> int:
        return len(self.features)

    def select(self, chosen: Sequence[int]) -> FeatureStore:
        """A part of the corpus."""
        return FeatureStore(
            [self.features[i] for i in chosen], [self.utterances[i] for i in chosen]
        )

    def to(self, device: torch.device | str) -> FeatureStore:
        """The same features on another device."""
        return FeatureStore([each.to(device) for each in self.features], self.utterances)

    def crops(self, batch_size: int, frames: int, seed: int = 0) -> CropBatches:
        """A loader of random crops of equal length, for pretraining."""
        return CropBatches(self, batch_size, frames, seed)

    def batches(self, batch_frames: int, seed: int | None = None) -> UtteranceBatches:
        """A loader of whole utterances of similar length; in random order given a seed."""
        return UtteranceBatches(self, batch_frames, seed)


class CropBatches:
    """Batches of one random crop from each utterance, of ``frames`` feature frames.

    Utterances that are shorter are padded. Order and crops depend on the seed and the epoch alone.
    """

    def __init__(self, store: FeatureStore, batch_size: int, frames: int, seed: int) -> None:
        check_count("batch_size", batch_size)
        check_count("frames", frames, least=SUBSAMPLING)
        if len(store) < batch_size:
            raise DatasetError(
                f"a batch of {batch_size} crops from {len(store)} utterances: take a smaller one"
            )
        self.store = store
        self.batch_size = batch_size
        self.frames = frames - frames % SUBSAMPLING
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, on which its order depends."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.store) // self.batch_size

    def __iter__(self) -> Iterator[SpeechInputs]:
        epoch = self.epoch
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.store))[: len(self) * self.batch_size]
        places = random.random(len(order))
        for start in range(0, len(order), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield self._batch(order[chosen], places[chosen], epoch)

    def _batch(self, order: Any, places: Any, epoch: int) -> SpeechInputs:
        crops = []
        for i, place in zip(order, places, strict=True):
            whole = self.store.features[i]
            first = int(place * (max(len(whole) - self.frames, 0) + 1))
            crops.append(whole[first : first + self.frames])
        chosen = [self.store.utterances[i] for i in order]
        return _inputs(crops, chosen, [key_of(self.seed, epoch, each.id) for each in chosen])


class UtteranceBatches:
    """Batches of whole utterances, of at most ``batch_frames`` feature frames with padding."""

    def __init__(self, store: FeatureStore, batch_frames: int, seed: int | None) -> None:
        check_count("batch_frames", batch_frames)
        self.store = store
        self.seed = seed
        self.epoch = 0
        self._groups: list[list[int]] = [[]]
        for i in np.argsort([len(each) for each in store.features], kind="stable")[::-1]:
            group = self._groups[-1]
            if group and (len(group) + 1) * len(store.features[group[0]]) > batch_frames:
                group = []
                self._groups.append(group)
            group.append(int(i))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, on which its order depends."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[SpeechInputs]:
        epoch, groups = self.epoch, self._groups
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(groups))
            groups = [groups[i] for i in order]
        for group in groups:
            chosen = [self.store.utterances[i] for i in group]
            keys = [key_of(self.seed or 0, epoch, each.id) for each in chosen]
            yield _inputs([self.store.features[i] for i in group], chosen, keys)


def _inputs(
    rows: Sequence[Tensor], utterances: Sequence[Utterance], keys: Sequence[int]
) -> SpeechInputs:
    features = pad_sequence(list(rows), batch_first=True).float()
    counts = np.array([len(each) for each in rows])
    return SpeechInputs.of(features, counts, keys, utterances)
