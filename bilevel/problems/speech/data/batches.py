"""Batches of waveforms from files: bucketed by length, seeded, shared out, resumable."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import DatasetError, OptionError
from bilevel.options import check_count, check_optional_positive, check_positive
from bilevel.problems.speech.data.audio import SAMPLE_RATE, AudioError, duration_of, read_audio
from bilevel.problems.speech.data.records import Utterance
from bilevel.problems.speech.noise import key_of
from bilevel.transfer import send

#: Seconds of one encoder frame: four windows of 25 ms, 10 ms apart.
SHORTEST = 0.055


@dataclass(frozen=True)
class SpeechBatch:
    """Waveforms, padded to one length.

    Attributes
    ----------
    waveforms, lengths
        [B, S] samples in float32, and [B] how many are each utterance's.
    utterances
        What is heard.
    keys
        One integer an utterance and epoch, from which masks and noise follow.
    """

    waveforms: Tensor
    lengths: Tensor
    utterances: list[Utterance]
    keys: list[int]

    def to(self, device: torch.device | str) -> SpeechBatch:
        """The same on another device."""
        return replace(
            self, waveforms=send(self.waveforms, device), lengths=send(self.lengths, device)
        )


class SpeechBatches:
    """A loader of the utterances of a corpus, epoch after epoch.

    Utterances are sorted into a few buckets by length and padded to the bucket's, so that a
    compiled model meets few shapes. The order depends on the seed and the epoch alone; each of
    several processes takes every ``world_size``-th utterance of each global batch, so that together
    they see what one process would.

    Audio that is missing, unreadable, corrupt, empty, silent, too short or too long is skipped. A
    warning tells what was: when the loader is made, and after a pass that came upon more.

    Attributes
    ----------
    skipped
        The reason of each utterance that was skipped so far, by name.

    Parameters
    ----------
    utterances
        The corpus.
    batch_seconds
        Audio of a batch of all processes, padding included.
    min_seconds, max_seconds
        Utterances outside are skipped; none is too long where ``max_seconds`` is ``None``.
    crop_seconds
        Take a random part of this length of longer utterances. Neither it nor ``min_seconds`` may
        be less than 0.055, one frame of the encoder.
    buckets
        Number of padded lengths, at most.
    seed, shuffle
        Of the order; without shuffling the longest come first.
    rank, world_size
        This process, of how many.
    workers
        Threads that read ahead.
    strict
        Raise the :class:`AudioError` of an utterance that would be skipped: an error rate over
        those that are left would be of another test set.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        batch_seconds: float,
        min_seconds: float = 0.3,
        max_seconds: float | None = 30.0,
        crop_seconds: float | None = None,
        buckets: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        strict: bool = False,
    ) -> None:
        check_positive("batch_seconds", batch_seconds)
        check_positive("min_seconds", min_seconds)
        check_optional_positive("max_seconds", max_seconds)
        check_optional_positive("crop_seconds", crop_seconds)
        for name, value in (("min_seconds", min_seconds), ("crop_seconds", crop_seconds)):
            if value is not None and value < SHORTEST:
                raise OptionError(
                    f"{name}={value!r}, expected at least {SHORTEST}: one frame of the encoder"
                )
        for name, count, least in (
            ("buckets", buckets, 1), ("seed", seed, 0), ("rank", rank, 0),
            ("world_size", world_size, 1), ("workers", workers, 0),
        ):  # fmt: skip
            check_count(name, count, least=least)
        if rank >= world_size:
            raise OptionError(f"rank={rank} of world_size={world_size} processes")
        self.utterances = list(utterances)
        self.crop_seconds = crop_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.strict = strict
        self.epoch = 0
        self.skipped: dict[str, str] = {}
        self._reported = 0
        self._start = 0
        self._plan(batch_seconds, min_seconds, max_seconds or np.inf, buckets)
        self._warn()

    def __len__(self) -> int:
        return len(self._order(0))

    def __iter__(self) -> Iterator[SpeechBatch]:
        start, self._start = self._start, 0
        drawn = False
        for batch in self._batches(self._order(self.epoch)[start:], self.epoch):
            if batch is not None:
                drawn = True
                yield batch
        self._warn()
        if not (drawn or start):
            raise DatasetError(f"a whole pass gave no batch. {self.report()}")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, on which its order depends."""
        self.epoch = epoch

    def skip(self, count: int) -> None:
        """Begin the next epoch's pass ``count`` batches in, without reading those before."""
        self._start = count

    def report(self) -> str:
        """What was skipped so far, by reason and name."""
        if not self.skipped:
            return f"{len(self.utterances)} utterances, none skipped"
        names: dict[str, list[str]] = {}
        for name, reason in sorted(self.skipped.items()):
            names.setdefault(reason, []).append(name)
        parts = [
            f"{len(each)} {reason} ({', '.join(each[:3])}{', ...' if len(each) > 3 else ''})"
            for reason, each in sorted(names.items())
        ]
        return (
            f"{len(self.skipped)} of {len(self.utterances)} utterances were skipped: "
            f"{'; '.join(parts)}"
        )

    def _warn(self) -> None:
        if len(self.skipped) > self._reported:
            self._reported = len(self.skipped)
            warnings.warn(self.report(), stacklevel=3)

    # Planning ------------------------------------------------------------------------------------

    def _plan(
        self, batch_seconds: float, min_seconds: float, max_seconds: float, buckets: int
    ) -> None:
        usable, lengths = [], []
        for number, utterance in enumerate(self.utterances):
            try:
                seconds = duration_of(utterance)
                _check_length(utterance, seconds, min_seconds, max_seconds)
            except AudioError as error:
                self._skip(utterance, error)
                continue
            usable.append(number)
            lengths.append(min(seconds, self.crop_seconds or seconds))
        if not usable:
            raise DatasetError(f"no utterance is left to read. {self.report()}")
        order = np.argsort(lengths, kind="stable")
        parts = np.linspace(0, 1, min(buckets, len(lengths)) + 1)[1:]
        edges = np.unique(np.quantile(lengths, parts, method="higher"))
        place = np.searchsorted(edges, np.array(lengths)[order])
        self._buckets: list[tuple[tuple[list[int], float], int]] = []
        for number, edge in enumerate(edges):
            rows = [usable[i] for i in order[place == number]]
            size = max(1, int(batch_seconds / edge))
            if size < self.world_size:
                raise OptionError(
                    f"batch_seconds={batch_seconds:g} holds {size} utterances of {edge:.1f} s, "
                    f"fewer than the {self.world_size} processes: raise it, or lower max_seconds"
                )
            if rows:
                self._buckets.append(((rows, float(edge)), size))

    def _order(self, epoch: int) -> list[tuple[list[int], float]]:
        """The epoch's batches: rows, and the length they are padded to.

        A batch with fewer utterances than there are processes is left out.
        """
        random = np.random.default_rng((self.seed, epoch))
        batches = []
        for (rows, edge), size in self._buckets:
            if self.shuffle:
                rows = [rows[i] for i in random.permutation(len(rows))]
            batches += [(rows[i : i + size], edge) for i in range(0, len(rows), size)]
        order = random.permutation(len(batches)) if self.shuffle else range(len(batches))[::-1]
        return [batches[i] for i in order if len(batches[i][0]) >= self.world_size]

    # Reading -------------------------------------------------------------------------------------

    def _batches(
        self, planned: list[tuple[list[int], float]], epoch: int
    ) -> Iterator[SpeechBatch | None]:
        if not self.workers:
            for rows, seconds in planned:
                yield self._read(rows, seconds, epoch)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[Future[SpeechBatch | None]] = deque()
            for rows, seconds in planned:
                ahead.append(pool.submit(self._read, rows, seconds, epoch))
                if len(ahead) > 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read(self, rows: list[int], seconds: float, epoch: int) -> SpeechBatch | None:
        """This process's part of a batch; where none of it can be read, what stands in for it.

        Nothing does in a single pass over a whole corpus, which is to miss and repeat none.
        """
        own = [self.utterances[i] for i in rows[self.rank :: self.world_size]]
        size = int(np.ceil(seconds * SAMPLE_RATE))
        waveforms, kept = [], []
        for utterance in own:
            samples = self._samples(utterance, size, epoch)
            if samples is not None:
                waveforms.append(samples)
                kept.append(utterance)
        if kept:
            return self._batch(waveforms, kept, size, epoch)
        return self._replacement(seconds, epoch) if self.shuffle or self.world_size > 1 else None

    def _samples(self, utterance: Utterance, size: int, epoch: int) -> Tensor | None:
        try:
            samples = read_audio(utterance)
            _check_length(utterance, len(samples) / SAMPLE_RATE, SHORTEST)
        except AudioError as error:
            self._skip(utterance, error)
            return None
        spare = len(samples) - size
        if spare > 0:
            first = 0
            if self.crop_seconds is not None:
                key = key_of(self.seed, epoch, utterance.id)
                first = int(np.random.default_rng((9, key)).integers(spare + 1))
            samples = samples[first : first + size]
        return torch.from_numpy(samples)

    def _batch(
        self, waveforms: list[Tensor], utterances: list[Utterance], size: int, epoch: int
    ) -> SpeechBatch:
        padded = torch.zeros(len(waveforms), size)
        for row, samples in zip(padded, waveforms, strict=True):
            row[: len(samples)] = samples
        lengths = torch.tensor([len(samples) for samples in waveforms])
        keys = [key_of(self.seed, epoch, each.id) for each in utterances]
        return SpeechBatch(padded, lengths, utterances, keys)

    def _replacement(self, seconds: float, epoch: int) -> SpeechBatch:
        """A readable utterance, no longer than the batch's if there is one.

        Other processes wait for this one's part of a step, and a run is resumed by the number of
        batches, so each that was planned has to come.
        """
        for (rows, edge), _ in sorted(self._buckets, key=lambda bucket: bucket[0][1] > seconds):
            size = int(np.ceil(max(edge, seconds) * SAMPLE_RATE))
            for utterance in (self.utterances[i] for i in rows):
                samples = self._samples(utterance, size, epoch)
                if samples is not None:
                    return self._batch([samples], [utterance], size, epoch)
        self._warn()
        raise DatasetError(f"no utterance can be read. {self.report()}")

    def _skip(self, utterance: Utterance, error: AudioError) -> None:
        if self.strict:
            raise error
        self.skipped[utterance.id] = error.reason


def _check_length(utterance: Utterance, seconds: float, least: float, most: float = np.inf) -> None:
    if not least <= seconds <= most:
        raise AudioError(
            "short" if seconds < least else "long",
            f"utterance {utterance.id!r} lasts {seconds:g} s, expected {least:g} to {most:g} s",
        )
