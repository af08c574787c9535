"""The CTC loss of a batch, and the targets that its frames cannot express."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.distributed import gather, world_size
from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.noise import KeyedNoise
from bilevel.problems.speech.recognition.augmentation import SpecAugment
from bilevel.problems.speech.recognition.tokens import BLANK

if TYPE_CHECKING:
    from bilevel.problems.speech.data import Utterance
    from bilevel.problems.speech.recognition.recogniser import Recogniser


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


class CTCObjective(nn.Module):
    r"""The objectives (0, g) of a batch; g is minus the log probability of a symbol.

    .. math:: g(\theta) = -\frac{\sum_i \ln p_\theta(y_i \mid x_i)}{\sum_i |y_i|}

    for features x and targets y. Utterances with fewer encoder frames than their
    targets need are left out. In several processes g is that of the global batch, once its
    gradients are averaged.

    Parameters
    ----------
    recogniser
        The recogniser to be trained.
    augment
        Applied to the features.

    Attributes
    ----------
    infeasible
        By utterance that was left out, the frames that its target needs and those that it has.
    utterances
        Of the last batch.
    frames, symbols
        Encoder frames that this process has seen, and the symbols that all have learnt from.
    """

    def __init__(self, recogniser: Recogniser, augment: SpecAugment | None = None) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.augment = augment
        self.utterances: Sequence[Utterance] = ()
        self.infeasible: dict[str, list[int]] = {}
        self.frames = 0
        self.symbols = 0

    def forward(self, batch: SpeechInputs) -> tuple[Tensor, Tensor]:
        batch = batch.to(self.recogniser.head.weight.device)
        self.utterances = batch.utterances
        features, counts = batch.features, batch.frame_counts
        if self.augment is not None:
            features = self.augment(features, counts, KeyedNoise(batch.keys, features.device))
        log_probs, _ = self.recogniser(features, counts)
        targets = [self.recogniser.vocabulary.target(each) for each in batch.utterances]
        needed = [frames_needed(target) for target in targets]
        frames = batch.lengths.tolist()
        kept = [row for row, need in enumerate(needed) if need <= frames[row]]
        for row in set(range(len(targets))).difference(kept):
            self.infeasible[batch.utterances[row].id] = [needed[row], frames[row]]
        symbols = sum(gather(sum(len(targets[row]) for row in kept)))
        self.frames += sum(frames)
        self.symbols += symbols
        total = 0.0 * log_probs.sum()  # a process without a feasible target stays in step
        if kept:
            total = ctc_loss(
                log_probs[kept], [frames[row] for row in kept], [targets[row] for row in kept]
            ).sum()
        g = total * (world_size() / max(symbols, 1))
        return 0.0 * g, g
