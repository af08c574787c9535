"""A recogniser: an encoder with an output layer, trained by CTC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.problems.speech.encoder import SpeechEncoder
from bilevel.problems.speech.model import evaluating
from bilevel.problems.speech.options import EncoderOptions
from bilevel.problems.speech.pretrained import (
    load_weights,
    read_configuration,
    save_model,
    unusable,
)
from bilevel.problems.speech.recognition.greedy import greedy_decode
from bilevel.problems.speech.recognition.tokens import LabelledUtterance, Vocabulary

#: From log probabilities [B, T, V] and lengths [B] to the symbols of each utterance.
Decoder: TypeAlias = Callable[[Tensor, Tensor], list[list[int]]]

_KIND = "bilevel.problems.speech.recogniser"
_VOCABULARY = "vocabulary.json"


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

    def recognise(
        self, features: Tensor, frame_counts: Tensor, decoder: Decoder = greedy_decode
    ) -> list[str]:
        """What is said in each utterance: a text, or phones with spaces between them.

        Parameters
        ----------
        features, frame_counts
            [B, F, 80] and [B], on any device.
        decoder
            :func:`greedy_decode`, or a :class:`BeamSearch`.
        """
        device = self.head.weight.device
        with torch.inference_mode(), evaluating(self):
            outputs = self(features.to(device), frame_counts.to(device))
        return [_text(self.vocabulary.decode(tokens)) for tokens in decoder(*outputs)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``vocabulary.json``.

        Raises
        ------
        OptionError
            the encoder is not a :class:`~bilevel.problems.speech.SpeechEncoder`.
        """
        if not isinstance(self.encoder, SpeechEncoder):
            raise OptionError(
                f"the encoder is a {type(self.encoder).__name__}, whose options are not known: only"
                " recognisers with a SpeechEncoder can be saved; keep the state_dict() of others"
            )
        folder = Path(folder)
        options = dataclasses.asdict(self.encoder.options)
        save_model(self, folder, _KIND, {"encoder": options, "dropout": self.dropout.p})
        self.vocabulary.save(folder / _VOCABULARY)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Recogniser:
        """Read what :meth:`save_pretrained` wrote; the recogniser is in evaluation mode.

        Raises
        ------
        DatasetError
            a file is missing, damaged, or of another model.
        """
        folder = Path(folder)
        content = read_configuration(folder, _KIND)
        try:
            encoder, dropout = EncoderOptions(**content["encoder"]), float(content["dropout"])
        except (KeyError, TypeError, ValueError, OptionError) as error:
            raise unusable(folder, error) from error
        vocabulary = Vocabulary.load(folder / _VOCABULARY)
        recogniser = cls(SpeechEncoder(encoder), vocabulary, dropout)
        load_weights(recogniser, folder)
        return recogniser.eval()


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
        Its dropout is off during the call.
    batches
        With the references.
    decoder
        :func:`greedy_decode`, or a :class:`BeamSearch`.
    """
    found = []
    for batch in batches:
        heard = recogniser.recognise(batch.features, batch.frame_counts, decoder)
        for utterance, hypothesis in zip(batch.utterances, heard, strict=True):
            vocabulary = recogniser.vocabulary
            reference = _text(vocabulary.decode(vocabulary.target(utterance)))
            found.append(Transcript(utterance.id, reference, hypothesis))
    return found


def _text(decoded: Any) -> str:
    return decoded if isinstance(decoded, str) else " ".join(decoded)
