"""Greedy CTC decoding: the most probable alignment, collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import OptionError
from bilevel.problems.speech.recognition.tokens import BLANK


def greedy_decode(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """The best symbol of every frame, repetitions merged, then blanks removed.

    Parameters
    ----------
    log_probs
        [B, T, V], the blank at index 0.
    lengths
        [B], frames of each utterance.

    Returns
    -------
    list of lists of int
        The symbols of each utterance.

    Raises
    ------
    OptionError
        A log probability is NaN.
    """
    best = log_probs.argmax(dim=-1)
    inside = torch.arange(best.shape[1], device=best.device) < lengths.to(best.device)[:, None]
    if bool((log_probs.isnan().any(dim=-1) & inside).any()):
        raise OptionError("the log probabilities contain NaN, so no symbol is best")
    changed = torch.ones_like(inside)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    kept = inside & changed & (best != BLANK)
    best, kept = best.cpu(), kept.cpu()
    return [row[chosen].tolist() for row, chosen in zip(best, kept, strict=True)]
