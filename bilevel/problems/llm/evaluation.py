"""Both objectives on whole data sets that were held out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.errors import DatasetError
from bilevel.problems.llm.batches import TokenBatch
from bilevel.problems.llm.log_probabilities import token_log_probabilities
from bilevel.problems.llm.losses import (
    dpo_loss,
    preference_margins,
    sequence_log_probabilities,
    sft_loss,
)
from bilevel.problems.llm.model import TwoLevelModel, check_finite, check_loaders
from bilevel.problems.llm.reference import reference_of


@dataclass(frozen=True)
class Scores:
    """How a model does on held-out preferences and instructions.

    Attributes
    ----------
    dpo_loss
        Mean over the preferences, nats; log 2 at the reference.
    preference_accuracy
        Share of the preferences whose margin over the reference is positive; ties count half.
    chosen_likelier
        Share of the preferences whose chosen response is the likelier one a token.
    sft_loss
        Mean over the response tokens, nats.
    """

    dpo_loss: float
    preference_accuracy: float
    chosen_likelier: float
    sft_loss: float

    @property
    def perplexity(self) -> float:
        """Of the instructions' responses, exp of the SFT loss."""
        return math.exp(self.sft_loss) if self.sft_loss < 700 else math.inf


@torch.no_grad()
def evaluate(
    model: TwoLevelModel,
    preferences: Iterable[TokenBatch],
    instructions: Iterable[TokenBatch],
    beta: float = 0.1,
    head: Tensor | None = None,
) -> Scores:
    """Both losses on all of the batches, weighted by their preferences and tokens.

    Parameters
    ----------
    model
        The model.
    preferences, instructions
        Batches of held-out records.
    beta
        β of DPO.
    head
        Another head in the place of the model's own.

    Raises
    ------
    DatasetError
        NaN or infinite logits, naming the sequence; no data; loaders in each other's place.
    """
    check_loaders(model, preferences, instructions)
    head = model.weight if head is None else head
    dpo = accuracy = likelier = pairs = sft = tokens = 0.0
    for batch in preferences:
        logs = token_log_probabilities(model.features(batch), head, batch.targets)
        policy = sequence_log_probabilities(logs, batch.lengths)
        check_finite(policy, batch, "the log-probability")
        reference = reference_of(model, batch).to(policy)
        count = len(policy) // 2
        chosen, rejected = (policy / batch.lengths).chunk(2)
        dpo += count * float(dpo_loss(policy, reference, beta))
        margins = preference_margins(policy, reference)
        accuracy += float(torch.heaviside(margins, margins.new_tensor(0.5)).sum())
        likelier += float((chosen > rejected).sum())
        pairs += count
    for batch in instructions:
        logs = token_log_probabilities(model.features(batch), head, batch.targets)
        check_finite(sequence_log_probabilities(logs, batch.lengths), batch, "the log-probability")
        sft += len(logs) * float(sft_loss(logs))
        tokens += len(logs)
    if not pairs or not tokens:
        raise DatasetError("there are no preferences, or no instructions, to evaluate the model on")
    return Scores(dpo / pairs, accuracy / pairs, likelier / pairs, sft / tokens)
