"""The CTC loss of a batch, and the targets that its frames cannot express."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.problems.speech.recognition.tokens import BLANK


def frames_needed(target: Sequence[int]) -> int:
    """Least number of frames of a target: a symbol each, and a blank between two that are equal."""
    return len(target) + sum(first == second for first, second in pairwise(target))


def ctc_loss(log_probs: Tensor, lengths: Sequence[int], targets: Sequence[Sequence[int]]) -> Tensor:
    """Negative log probability of each target [B]; infinite where the frames are too few.

    Parameters
    ----------
    log_probs
        [B, T, V] in float32.
    lengths
        Frames of each utterance.
    targets
        Symbols of each utterance, without blanks.
    """
    flat = [symbol for target in targets for symbol in target]
    losses: Tensor = F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor(flat, dtype=torch.long, device=log_probs.device),
        torch.as_tensor(lengths, dtype=torch.long),
        torch.tensor([len(target) for target in targets]),
        blank=BLANK,
        reduction="none",
    )
    return losses
