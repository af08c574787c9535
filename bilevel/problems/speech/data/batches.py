"""Batches of waveforms from files: bucketed by length, seeded, shared out, resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import DatasetError, OptionError
from bilevel.options import check_count, check_positive
from bilevel.problems.speech.data.audio import AudioError, duration_of, read_audio
from bilevel.problems.speech.data.records import Utterance
from bilevel.problems.speech.noise import key_of


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
            self,
            waveforms=self.waveforms.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
        )

    def pin_memory(self) -> SpeechBatch:
        """The same in page-locked memory."""
        return replace(
            self, waveforms=self.waveforms.pin_memory(), lengths=self.lengths.pin_memory()
        )


class SpeechBatches:
    """A loader of the utterances of a corpus, epoch after epoch.

    Utterances are sorted into a few buckets by length and padded to the bucket's, so that a
    compiled model meets few shapes. The order depends on the seed and the epoch alone; each of
    several processes takes every ``world_size``-th utterance of each global batch, so that together
    they see what one process would.

    Audio that is missing, corrupt, empty, silent, too short or too long is skipped, and listed in
    ``skipped``: reason -> names.

    Parameters
    ----------
    utterances
        The corpus.
    batch_seconds
        Audio of a batch of all processes, padding included.
    sample_rate
        Of the waveforms.
    min_seconds, max_seconds
        Utterances outside are skipped.
    crop_seconds
        Take a random part of this length of longer utterances.
    buckets
        Number of padded lengths, at most.
    seed, shuffle
        Of the order; without shuffling the longest come first.
    rank, world_size
        This process, of how many.
    workers
        Threads that read ahead.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        batch_seconds: float,
        sample_rate: int = 16_000,
        min_seconds: float = 0.3,
        max_seconds: float = 30.0,
        crop_seconds: float | None = None,
        buckets: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        for name, value in (
            ("batch_seconds", batch_seconds), ("min_seconds", min_seconds),
            ("max_seconds", max_seconds), ("crop_seconds", crop_seconds or 1.0),
        ):  # fmt: skip
            check_positive(name, value)
        for name, count, least in (
            ("sample_rate", sample_rate, 1), ("buckets", buckets, 1), ("seed", seed, 0),
            ("world_size", world_size, 1), ("workers", workers, 0),
        ):  # fmt: skip
            check_count(name, count, least=least)
        if not 0 <= rank < world_size:
            raise OptionError(f"rank={rank} of world_size={world_size} processes")
        self.utterances = list(utterances)
        self.sample_rate = sample_rate
        self.crop_seconds = crop_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.epoch = 0
        self.skipped: dict[str, list[str]] = {}
        self._start = 0
        self._plan(batch_seconds, min_seconds, max_seconds, buckets)

    def __len__(self) -> int:
        return len(self._order(0))

    def __iter__(self) -> Iterator[SpeechBatch]:
        epoch, start = self.epoch, self._start
        self._start = 0
        planned = self._order(epoch)[start:]
        if not self.workers:
            for rows, seconds in planned:
                yield from self._read(rows, seconds, epoch)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[Future[list[SpeechBatch]]] = deque()
            for rows, seconds in planned:
                ahead.append(pool.submit(self._read, rows, seconds, epoch))
                if len(ahead) > 2 * self.workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

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
        parts = [
            f"{len(names)} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for reason, names in sorted(self.skipped.items())
        ]
        total = sum(map(len, self.skipped.values()))
        return f"{total} of {len(self.utterances)} utterances were skipped: {'; '.join(parts)}"

    # Planning ------------------------------------------------------------------------------------

    def _plan(
        self, batch_seconds: float, min_seconds: float, max_seconds: float, buckets: int
    ) -> None:
        usable, lengths = [], []
        for number, utterance in enumerate(self.utterances):
            try:
                seconds = duration_of(utterance)
            except AudioError as error:
                self._skip(utterance, error.reason)
                continue
            if not min_seconds <= seconds <= max_seconds:
                self._skip(utterance, "short" if seconds < min_seconds else "long")
                continue
            usable.append(number)
            lengths.append(min(seconds, self.crop_seconds or seconds))
        if not usable:
            raise DatasetError(f"no utterance is left to read. {self.report()}")
        order = np.argsort(lengths, kind="stable")
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, buckets + 1)[1:], method="higher"))
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

    def _read(self, rows: list[int], seconds: float, epoch: int) -> list[SpeechBatch]:
        """This process's part of a batch; nothing where none of it can be read."""
        own = [self.utterances[i] for i in rows[self.rank :: self.world_size]]
        size = int(np.ceil(seconds * self.sample_rate))
        waveforms, kept = [], []
        for utterance in own:
            samples = self._samples(utterance, size, epoch)
            if samples is not None:
                waveforms.append(samples)
                kept.append(utterance)
        if not kept and self.world_size > 1:
            return [self._replacement(size, epoch)]
        return [self._batch(waveforms, kept, size, epoch)] if kept else []

    def _samples(self, utterance: Utterance, size: int, epoch: int) -> Tensor | None:
        try:
            samples = read_audio(utterance)
        except AudioError as error:
            self._skip(utterance, error.reason)
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

    def _replacement(self, size: int, epoch: int) -> SpeechBatch:
        """A readable utterance, where the others wait for this process's part of a step."""
        for utterance in self.utterances:
            samples = self._samples(utterance, size, epoch)
            if samples is not None:
                return self._batch([samples], [utterance], size, epoch)
        raise DatasetError(f"no utterance can be read. {self.report()}")

    def _skip(self, utterance: Utterance, reason: str) -> None:
        names = self.skipped.setdefault(reason, [])
        if utterance.id not in names:
            names.append(utterance.id)
