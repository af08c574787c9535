"""A recogniser: an encoder with an output layer, trained by CTC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from bilevel.problems.speech.recognition.greedy import greedy_decode
from bilevel.problems.speech.recognition.tokens import LabelledUtterance, Vocabulary

#: From log probabilities [B, T, V] and lengths [B] to the symbols of each utterance.
Decoder: TypeAlias = Callable[[Tensor, Tensor], list[list[int]]]


class LabelledBatch(Protocol):
    """A padded batch of utterances and their features."""

    @property
    def features(self) -> Tensor:
        """[B, F, 80]."""

    @property
    def frame_counts(self) -> Tensor:
        """[B], feature frames of each utterance."""

    @property
    def utterances(self) -> Sequence[LabelledUtterance]:
        """Whose features they are."""


class Recogniser(nn.Module):
    """Features to log probabilities of symbols.

    Parameters
    ----------
    encoder
        Module with an attribute ``width`` = d that takes features [B, F, 80] and their frame counts
        [B] to hidden states [B, T, d] and their lengths [B].
    vocabulary
        The symbols.
    dropout
        Of the hidden states before the output layer.
    """

    def __init__(self, encoder: nn.Module, vocabulary: Vocabulary, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.width), len(vocabulary))  # type: ignore[arg-type]

    def forward(self, features: Tensor, frame_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities [B, T, V], float32 under autocast too, and lengths [B]."""
        hidden, lengths = self.encoder(features, frame_counts)
        logits = self.head(self.dropout(hidden))
        return logits.float().log_softmax(dim=-1), lengths


@dataclass(frozen=True)
class Transcript:
    """What was said, and what was recognised: texts, or phones with spaces between them."""

    id: str
    reference: str
    hypothesis: str


def transcribe(
    recogniser: Recogniser, batches: Iterable[LabelledBatch], decoder: Decoder = greedy_decode
) -> list[Transcript]:
    """Recognise every utterance of one pass over the batches.

    Parameters
    ----------
    recogniser
        In evaluation mode during the call, afterwards in the mode it was in.
    batches
        With the references.
    decoder
        :func:`greedy_decode`, or a :class:`BeamSearch`.
    """
    device = recogniser.head.weight.device
    training = recogniser.training
    recogniser.eval()
    found = []
    try:
        for batch in batches:
            with torch.inference_mode():
                outputs = recogniser(batch.features.to(device), batch.frame_counts.to(device))
            for utterance, tokens in zip(batch.utterances, decoder(*outputs), strict=True):
                reference = recogniser.vocabulary.target(utterance)
                texts = (_text(recogniser.vocabulary.decode(each)) for each in (reference, tokens))
                found.append(Transcript(utterance.id, *texts))
    finally:
        recogniser.train(training)
    return found


def _text(decoded: Any) -> str:
    return decoded if isinstance(decoded, str) else " ".join(decoded)
