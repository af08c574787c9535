"""Masked spans: chosen on the host, so that their number is known without asking the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.problems.speech.noise import KeyedNoise
from bilevel.problems.speech.options import MEL_BINS, SUBSAMPLING, MaskOptions
from bilevel.transfer import send


@dataclass(frozen=True)
class Mask:
    """The masked encoder frames of a batch.

    Attributes
    ----------
    rows, frames
        [N] indices into [B, T], utterance after utterance.
    counts
        How many of the N each utterance has.
    """

    rows: Tensor
    frames: Tensor
    counts: list[int]

    def take(self, tensor: Tensor) -> Tensor:
        """The masked frames [N, ...] of a tensor [B, T, ...]."""
        return tensor[self.rows, self.frames]


def draw_mask(options: MaskOptions, lengths: NDArray[np.int64], noise: KeyedNoise) -> Mask:
    """Spans that start at each frame with the given probability, at least one an utterance.

    Parameters
    ----------
    options
        Probability and length of the spans, which overlap freely and end with the utterance.
    lengths
        [B] encoder frames of each utterance, at least 1.
    noise
        The source of randomness.
    """
    total = int(lengths.max())
    inside = np.arange(total) < lengths[:, None]
    draws = np.where(inside, noise.uniform(total), np.inf)
    starts = draws <= np.maximum(options.probability, draws.min(axis=1, keepdims=True))
    begun = np.cumsum(starts & inside, axis=1)
    ended = np.pad(begun, ((0, 0), (options.span, 0)))[:, :total]
    masked = (begun > ended) & inside
    rows, frames = np.nonzero(masked)
    index = send(torch.from_numpy(np.stack([rows, frames])), noise.device)
    return Mask(index[0], index[1], masked.sum(axis=1).tolist())


def apply_mask(features: Tensor, mask: Mask, options: MaskOptions, noise: KeyedNoise) -> Tensor:
    """Features [B, F, 80], F a multiple of 4, with normal noise in the masked encoder frames."""
    size = SUBSAMPLING * MEL_BINS
    masked = features.reshape(len(features), -1, size).clone()
    masked[mask.rows, mask.frames] = options.noise * noise.normal(mask.counts, size)
    return masked.view_as(features)


def stack_frames(features: Tensor) -> Tensor:
    """[B, F, 80] to [B, F / 4, 320]: the feature frames that each encoder frame stands for."""
    return features.reshape(len(features), -1, SUBSAMPLING * MEL_BINS)
