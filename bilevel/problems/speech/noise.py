"""Random numbers that belong to an utterance, whatever else is in its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Streams of one utterance in one step that must not share their numbers.
MASK_STARTS, MASK_NOISE, GUMBEL = range(3)


def key_of(seed: int, epoch: int, name: str) -> int:
    """The key of an utterance, by its name, in an epoch."""
    # Names of files need not be valid Unicode.
    text = f"{seed}:{epoch}:{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


class KeyedNoise:
    """Draws for each utterance from its own generator, seeded by the utterance's key.

    So a step draws the same numbers for an utterance on one process or several, in a batch or in
    micro-batches, and after a resume: there is no state to restore.

    Parameters
    ----------
    keys
        One non-negative integer for each utterance of the batch.
    device
        Where the numbers are made; CPUs and GPUs draw different ones.
    """

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        self.keys = keys
        self.device = device

    def uniform(self, size: int) -> NDArray[np.float64]:
        """[B, size] numbers in [0, 1), on the host, for the mask."""
        return np.stack(
            [np.random.default_rng((MASK_STARTS, key)).random(size) for key in self.keys]
        )

    def normal(self, counts: Sequence[int], size: int) -> Tensor:
        """[sum(counts), size] normal numbers: ``counts[i]`` rows of utterance i, in order."""
        rows = [
            torch.randn(count, size, generator=generator, device=self.device)
            for count, generator in self._generators(counts, MASK_NOISE)
        ]
        return torch.cat(rows)

    def gumbel(self, counts: Sequence[int], size: int) -> Tensor:
        """[sum(counts), size] numbers with the standard Gumbel distribution."""
        rows = [
            torch.empty(count, size, device=self.device).exponential_(generator=generator)
            for count, generator in self._generators(counts, GUMBEL)
        ]
        return -torch.cat(rows).log_()

    def _generators(
        self, counts: Sequence[int], stream: int
    ) -> Iterator[tuple[int, torch.Generator]]:
        generator = torch.Generator(self.device)
        for key, count in zip(self.keys, counts, strict=True):
            seed = np.random.SeedSequence((stream, key)).generate_state(1, np.uint64)[0]
            yield count, generator.manual_seed(int(seed >> 1))
