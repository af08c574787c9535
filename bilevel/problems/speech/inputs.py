"""What the encoder is given: features, with the sizes that the host must know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bilevel.errors import DatasetError, NonFiniteError
from bilevel.problems.speech.features import LogMel, normalise
from bilevel.problems.speech.options import MEL_BINS, SUBSAMPLING
from bilevel.transfer import send


@dataclass(frozen=True)
class SpeechInputs:
    """Features of a batch.

    Attributes
    ----------
    features
        [B, F, 80], normalised, F a multiple of 4.
    counts
        [B] feature frames on the same device; ``None`` where no utterance is padded, which lets
        attention take its fastest path.
    lengths
        [B] encoder frames that rest on four feature frames, on the host.
    keys
        One integer an utterance, from which its mask and noise follow.
    utterances
        Whose features they are, where it matters.
    """

    features: Tensor
    counts: Tensor | None
    lengths: NDArray[np.int64]
    keys: Sequence[int]
    utterances: Sequence[Any] = ()

    @classmethod
    def of(
        cls,
        features: Tensor,
        counts: NDArray[np.int64] | Tensor,
        keys: Sequence[int],
        utterances: Sequence[Any] = (),
    ) -> SpeechInputs:
        """Inputs from features [B, F, 80] and the feature frames of each utterance, on the host."""
        host = np.asarray(counts, dtype=np.int64)
        shortest = int(host.argmin())
        if host[shortest] < SUBSAMPLING:
            name = repr(utterances[shortest].id) if len(utterances) else f"{shortest} of the batch"
            raise DatasetError(
                f"utterance {name} has {host[shortest]} feature frames, expected at least "
                f"{SUBSAMPLING} (55 ms of audio)"
            )
        features = F.pad(features, (0, 0, 0, -features.shape[1] % SUBSAMPLING))
        padded = bool((host < features.shape[1]).any())
        device_counts = send(torch.from_numpy(host), features.device)
        return cls(
            features, device_counts if padded else None, host // SUBSAMPLING, keys, utterances
        )

    @property
    def frame_counts(self) -> Tensor:
        """[B], feature frames of each utterance, on the features' device."""
        if self.counts is not None:
            return self.counts
        batch, frames = self.features.shape[:2]
        return torch.full((batch,), frames, device=self.features.device)

    @property
    def valid(self) -> Tensor:
        """[B, T], whether an encoder frame rests on four feature frames."""
        steps = torch.arange(self.features.shape[1] // SUBSAMPLING, device=self.features.device)
        lengths = send(torch.from_numpy(self.lengths), self.features.device)
        return steps < lengths[:, None]

    def to(self, device: torch.device) -> SpeechInputs:
        """The same on another device."""
        if self.features.device == device:
            return self
        counts = None if self.counts is None else send(self.counts, device)
        return replace(self, features=send(self.features, device), counts=counts)


@contextmanager
def naming_utterances(objective: Any) -> Iterator[None]:
    """Let a :class:`NonFiniteError` name some of the objective's last ``utterances``."""
    try:
        yield
    except NonFiniteError as error:
        names = ", ".join(each.id for each in objective.utterances[:3])
        text = f"{error} (in a batch of {names}, ...)" if names else str(error)
        raise NonFiniteError(text, error.state, error.history) from error


class FrontEnd(nn.Module):
    """Normalised log-mel features of a batch of waveforms, computed on one device."""

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(bins=MEL_BINS)

    def forward(self, batch: Any, device: torch.device) -> SpeechInputs:
        """Inputs from a :class:`~bilevel.problems.speech.data.SpeechBatch`."""
        counts = self.log_mel.frame_counts(batch.lengths.cpu())
        batch = batch.to(device)
        features, device_counts = self.log_mel(batch.waveforms, batch.lengths)
        features = normalise(features, device_counts)
        return SpeechInputs.of(features, counts, batch.keys, batch.utterances)
