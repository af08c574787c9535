"""SpecAugment: bands of time and frequency are blanked while a recogniser is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.options import check_count, check_share
from bilevel.problems.speech.noise import KeyedNoise


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Random bands of normalised features become 0, their mean.

    Each band's width is uniform between 0 and its maximum, its position uniform where it fits.
    Source: Park et al. 2019, arXiv:1904.08779.

    Parameters
    ----------
    time_bands, time_width
        How many bands of frames, and their greatest width in frames of 10 ms.
    time_share
        Greatest width as a share of the utterance, so that short ones keep enough.
    mel_bands, mel_width
        How many bands of mel bins, and their greatest width.
    """

    time_bands: int = 2
    time_width: int = 40
    time_share: float = 0.1
    mel_bands: int = 2
    mel_width: int = 20

    def __post_init__(self) -> None:
        for name in ("time_bands", "time_width", "mel_bands", "mel_width"):
            check_count(name, getattr(self, name), least=0)
        check_share("time_share", self.time_share)

    def __call__(self, features: Tensor, frame_counts: Tensor, noise: KeyedNoise) -> Tensor:
        """Blank bands of [B, F, 80] features, of each utterance its own."""
        counts = frame_counts[:, None].to(features)
        bins = torch.full_like(counts, features.shape[2])
        drawn = torch.from_numpy(noise.uniform(2 * (self.time_bands + self.mel_bands)))
        drawn = drawn.to(features.device)
        widest = (counts * self.time_share).floor().clamp(max=float(self.time_width))
        frames = _bands(drawn[:, : 2 * self.time_bands], widest, counts, features.shape[1])
        widest = bins.clamp(max=float(self.mel_width))
        mels = _bands(drawn[:, 2 * self.time_bands :], widest, bins, features.shape[2])
        return features.masked_fill(frames[:, :, None] | mels[:, None, :], 0.0)


def _bands(drawn: Tensor, widest: Tensor, size: Tensor, total: int) -> Tensor:
    """[B, total], true inside bands that lie within the first ``size`` places [B, 1].

    ``drawn`` [B, 2 * bands] are numbers in [0, 1) that choose the widths and the places.
    """
    width, place = drawn.chunk(2, dim=1)
    widths = (width * (widest + 1)).floor()
    starts = (place * (size - widths + 1)).floor()
    places = torch.arange(total, device=size.device)
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return inside.any(dim=1)
