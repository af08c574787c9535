"""Log-mel features after Kaldi's conventions, for whole batches on one device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.options import check_count

_PREEMPHASIS = 0.97
_LOW_HZ = 20.0


class LogMel(nn.Module):
    """Waveforms [B, S] to log-mel features [B, F, bins].

    Frames of 25 ms every 10 ms that lie inside the waveform, so that F = 1 + (S - 400) // 160 at
    16 kHz. Each frame loses its mean, is preemphasised, windowed (Povey's window) and transformed;
    its power spectrum is summed by triangular mel filters from 20 Hz to half the sample rate, and
    the logarithm taken. In single precision whatever autocast says.

    Parameters
    ----------
    sample_rate
        Of the waveforms, in Hz.
    bins
        Mel filters.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int = 16_000, bins: int = 80) -> None:
        super().__init__()
        check_count("sample_rate", sample_rate)
        check_count("bins", bins)
        self.size = sample_rate * 25 // 1000
        self.shift = sample_rate * 10 // 1000
        self.transform = 1 << (self.size - 1).bit_length()
        hann = torch.hann_window(self.size, periodic=False, dtype=torch.float64)
        filters = _mel_filters(sample_rate, bins, self.transform)
        self.register_buffer("window", hann.pow(0.85).float(), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def frame_counts(self, lengths: Any) -> Any:
        """Frames of waveforms of these lengths in samples; 0 where one is too short."""
        counts = 1 + (lengths - self.size) // self.shift
        return counts * (counts > 0)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F, bins] in float32, and the frames of each waveform [B].

        Parameters
        ----------
        waveforms
            [B, S], padded with anything.
        lengths
            [B], samples of each.

        Raises
        ------
        OptionError
            The batch is not a matrix, or too short for a single frame.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] < self.size:
            raise OptionError(
                f"waveforms of shape {tuple(waveforms.shape)}, expected [B, S] with S at least "
                f"{self.size} samples"
            )
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = waveforms.float().unfold(1, self.size, self.shift)
            frames = frames - frames.mean(dim=2, keepdim=True)
            earlier = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            frames = (frames - _PREEMPHASIS * earlier) * self.window
            power = torch.fft.rfft(frames, n=self.transform).abs().square()
            energies = power[..., : self.filters.shape[0]] @ self.filters
            floor = torch.finfo(torch.float32).eps
            return energies.clamp_min(floor).log(), self.frame_counts(lengths)


def normalise(features: Tensor, counts: Tensor) -> Tensor:
    """Each utterance to mean 0 and standard deviation 1 in every bin; 0 on padding.

    Parameters
    ----------
    features
        [B, F, bins].
    counts
        [B], frames of each utterance; those beyond neither count nor matter.
    """
    inside = torch.arange(features.shape[1], device=features.device) < counts[:, None]
    weight = inside[:, :, None].to(features.dtype)
    total = counts.clamp_min(1).to(features.dtype)[:, None, None]
    features = features.masked_fill(~inside[:, :, None], 0.0)
    centred = (features - features.sum(dim=1, keepdim=True) / total) * weight
    variance = centred.square().sum(dim=1, keepdim=True) / total
    return centred / variance.clamp_min(1e-10).sqrt()


def _mel(frequency: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(frequency / 700.0)


def _mel_filters(sample_rate: int, bins: int, transform: int) -> Tensor:
    """[transform / 2, bins]: triangles with equal spacing and unit height on the mel scale."""
    edges = _mel(torch.tensor([_LOW_HZ, sample_rate / 2], dtype=torch.float64))
    spacing = (edges[1] - edges[0]) / (bins + 1)
    left = edges[0] + spacing * torch.arange(bins, dtype=torch.float64)
    mel = _mel(torch.arange(transform // 2, dtype=torch.float64) * sample_rate / transform)
    up = (mel[:, None] - left) / spacing
    down = (left + 2 * spacing - mel[:, None]) / spacing
    return torch.minimum(up, down).clamp_min(0.0)
