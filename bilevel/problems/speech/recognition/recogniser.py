"""A recogniser: an encoder with an output layer, trained by CTC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.options import check_share
from bilevel.problems.speech.encoder import SpeechEncoder
from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.model import evaluating
from bilevel.problems.speech.options import EncoderOptions
from bilevel.problems.speech.pretrained import (
    load_weights,
    read_configuration,
    save_model,
    unusable,
)
from bilevel.problems.speech.recognition.greedy import greedy_decode
from bilevel.problems.speech.recognition.tokens import Vocabulary

#: From log probabilities [B, T, V] and lengths [B] to the symbols of each utterance.
Decoder: TypeAlias = Callable[[Tensor, Tensor], list[list[int]]]

_KIND = "bilevel.problems.speech.recogniser"


class Recogniser(nn.Module):
    """Features to log probabilities of symbols.

    Parameters
    ----------
    encoder
        Module with an attribute ``width`` = d that takes features [B, F, 80], log-mel spectra
        normalised as those of :class:`~bilevel.problems.speech.SpeechInputs` are, and their frame
        counts [B] to hidden states [B, T, d] and their lengths [B], a quarter of the counts.
    vocabulary
        The symbols.
    dropout
        Of the hidden states before the output layer.
    """

    def __init__(self, encoder: nn.Module, vocabulary: Vocabulary, dropout: float = 0.1) -> None:
        super().__init__()
        check_share("dropout", dropout, below_one=True)
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
            :func:`greedy_decode`, or a :class:`BeamSearch` over the recogniser's vocabulary.
        """
        searched = getattr(decoder, "vocabulary", self.vocabulary)
        if searched.symbols != self.vocabulary.symbols:
            raise OptionError(
                f"the decoder's vocabulary of {len(searched)} symbols is not the recogniser's of "
                f"{len(self.vocabulary)}: give it vocabulary=recogniser.vocabulary"
            )
        device = self.head.weight.device
        with torch.inference_mode(), evaluating(self):
            outputs = self(features.to(device), frame_counts.to(device))
        return [self.vocabulary.decode(tokens) for tokens in decoder(*outputs)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``.

        Raises
        ------
        DatasetError
            A file cannot be written.
        OptionError
            the encoder is not a :class:`~bilevel.problems.speech.SpeechEncoder`.
        """
        if not isinstance(self.encoder, SpeechEncoder):
            raise OptionError(
                f"the encoder is a {type(self.encoder).__name__}, whose options are not known: only"
                " recognisers with a SpeechEncoder can be saved; keep the state_dict() of others"
            )
        configuration = {
            "encoder": dataclasses.asdict(self.encoder.options),
            "dropout": self.dropout.p,
            "vocabulary": {
                "kind": self.vocabulary.kind,
                "symbols": list(self.vocabulary.symbols),
                "skipped": sorted(self.vocabulary.skipped),
            },
        }
        save_model(self, Path(folder), _KIND, configuration)

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
            words = content["vocabulary"]
            vocabulary = Vocabulary(
                tuple(words["symbols"]), words["kind"], frozenset(words["skipped"])
            )
            encoder = SpeechEncoder(EncoderOptions(**content["encoder"]))
            recogniser = cls(encoder, vocabulary, content["dropout"])
        except (KeyError, TypeError, ValueError, OptionError) as error:
            raise unusable(folder, error) from error
        load_weights(recogniser, folder)
        return recogniser.eval()


@dataclass(frozen=True)
class Transcript:
    """What was said, and what was recognised: texts, or phones with spaces between them.

    Attributes
    ----------
    id, speaker
        Of the utterance; ``None`` where the speaker is not known.
    reference, hypothesis
        What was said, and what was recognised.
    """

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None


def transcribe(
    recogniser: Recogniser, batches: Iterable[SpeechInputs], decoder: Decoder = greedy_decode
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
            reference = vocabulary.decode(vocabulary.target(utterance))
            found.append(Transcript(utterance.id, reference, hypothesis, utterance.speaker))
    return found
