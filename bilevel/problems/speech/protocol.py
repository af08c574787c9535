"""The protocol of the experiments: pretrain without labels, fine-tune on a few, measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from bilevel.callbacks import Callback
from bilevel.distributed import averaging
from bilevel.errors import DatasetError
from bilevel.problems.speech.data.phones import SILENCE
from bilevel.problems.speech.losses import PretrainingLosses
from bilevel.problems.speech.measures import (
    ErrorCounts,
    TextNormaliser,
    character_errors,
    phone_errors,
    word_errors,
)
from bilevel.problems.speech.model import SpeechModel
from bilevel.problems.speech.options import SpeechOptions
from bilevel.problems.speech.pretraining import PretrainingOptions, pretrain
from bilevel.problems.speech.recognition import (
    BeamSearch,
    FineTuningOptions,
    Recogniser,
    Transcript,
    Vocabulary,
    finetune,
    greedy_decode,
    transcribe,
)
from bilevel.problems.speech.recognition.recogniser import Decoder
from bilevel.problems.speech.representation import Representation, representation
from bilevel.problems.speech.sources import SpeechSource


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Budgets of an arm.

    Parameters
    ----------
    pretraining
        Steps and rates.
    finetuning, finetuning_steps
        Rates, and steps.
    compile
        Whether to compile the encoder's layers with ``torch.compile`` for pretraining.
    """

    pretraining: PretrainingOptions
    finetuning: FineTuningOptions = field(default_factory=FineTuningOptions)
    finetuning_steps: int = 300
    compile: bool = False

    def pretrain(
        self,
        source: SpeechSource,
        options: SpeechOptions,
        method: str,
        seed: int,
        *,
        teacher: SpeechModel | None = None,
        device: torch.device | str = "cpu",
        callbacks: Sequence[Callback] = (),
        log_every: int | None = None,
        progress: bool | None = None,
        resume: str | Path | None = None,
    ) -> Pretrained:
        """A model pretrained by a method, or, for ``"scratch"``, as it begins."""
        torch.manual_seed(seed)
        model = SpeechModel(options).to(device)
        history, seconds = pd.DataFrame(), 0.0
        if method != "scratch":
            if self.compile:
                model.encoder.compile_layers()
            losses = PretrainingLosses(model, method, teacher)
            solution = pretrain(
                losses,
                source.pretraining(seed),
                self.pretraining,
                wrapper=averaging(losses),
                callbacks=callbacks,
                log_every=log_every,
                progress=progress,
                resume=resume,
            )
            history, seconds = solution.history, solution.seconds
        model.eval()
        model.calibrate(source.sampled())
        return Pretrained(model, history, seconds)

    def represent(self, source: SpeechSource, model: SpeechModel) -> Representation:
        """What the model's layers and labels say about the phones of the test voices.

        Raises
        ------
        DatasetError
            The utterances are not aligned with phones.
        """
        if not is_aligned(source):
            raise DatasetError(
                "probes need utterances with phones and their times, as those of espeak_corpus(): "
                "leave them out for these"
            )
        return representation(model, source.sampled(), source.tested())

    def recognise(
        self,
        source: SpeechSource,
        encoder: nn.Module,
        seed: int,
        *,
        search: BeamSearch | None = None,
        device: torch.device | str = "cpu",
        callbacks: Sequence[Callback] = (),
        progress: bool | None = None,
        resume: str | Path | None = None,
    ) -> Recognised:
        """What the test voices say, after fine-tuning the encoder in place.

        In phones where the utterances are aligned with them, otherwise in characters; decoded
        greedily, and by the search where one is given, over :func:`vocabulary_of` the source.
        """
        torch.manual_seed(seed)
        began = time.perf_counter()
        recogniser = Recogniser(encoder, vocabulary_of(source)).to(device)
        tuned = finetune(
            recogniser,
            source.labelled(seed),
            steps=self.finetuning_steps,
            options=self.finetuning,
            callbacks=callbacks,
            progress=progress,
            resume=resume,
        )
        seconds = time.perf_counter() - began
        greedy = decode(recogniser, source)
        beam = decode(recogniser, source, search) if search is not None else None
        return Recognised(recogniser, tuned.history, seconds, greedy, beam)


def decode(
    recogniser: Recogniser, source: SpeechSource, decoder: Decoder = greedy_decode
) -> Decoded:
    """What a decoder makes of the test voices."""
    began = time.perf_counter()
    transcripts = transcribe(recogniser, source.tested(), decoder)
    transcripts.sort(key=lambda each: each.id)
    unit = "phone" if recogniser.vocabulary.kind == "phones" else "word"
    return Decoded(transcripts, unit, time.perf_counter() - began)


def vocabulary_of(source: SpeechSource) -> Vocabulary:
    """The phones of a source's aligned utterances, or else the characters of its texts."""
    if is_aligned(source):  # no recogniser is asked for pauses
        return Vocabulary.of_phones(source.transcribed, skipped=(SILENCE,))
    return Vocabulary.of_texts(each.text or "" for each in source.transcribed)


def is_aligned(source: SpeechSource) -> bool:
    """Whether all its transcribed utterances have phones."""
    return all(each.phones for each in source.transcribed)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained, calibrated model, its history, and how long it took."""

    model: SpeechModel
    history: pd.DataFrame
    seconds: float


@dataclass(frozen=True)
class Decoded:
    """What a decoder heard, in the order of names.

    Attributes
    ----------
    transcripts
        One an utterance.
    unit
        Of the errors: ``"phone"`` or ``"word"``.
    seconds
        What it took, the encoder included.
    """

    transcripts: list[Transcript]
    unit: str
    seconds: float

    @property
    def errors(self) -> ErrorCounts:
        """Errors by utterance; those in words regardless of case and punctuation."""
        if self.unit == "phone":
            return phone_errors(*self._texts)
        return word_errors(*self._texts, TextNormaliser())

    @property
    def character_errors(self) -> ErrorCounts | None:
        """Errors in characters, where texts are heard and not phones."""
        if self.unit == "phone":
            return None
        return character_errors(*self._texts, TextNormaliser())

    @property
    def _texts(self) -> tuple[list[str], list[str]]:
        references = [each.reference for each in self.transcripts]
        return references, [each.hypothesis for each in self.transcripts]


@dataclass(frozen=True)
class Recognised:
    """A fine-tuned recogniser and what it heard.

    Attributes
    ----------
    recogniser, history, seconds
        Of fine-tuning.
    greedy, beam
        By the two decoders; ``None`` where no search was given.
    """

    recogniser: Recogniser
    history: pd.DataFrame
    seconds: float
    greedy: Decoded
    beam: Decoded | None

    @property
    def errors(self) -> ErrorCounts:
        """Errors by utterance of greedy decoding."""
        return self.greedy.errors
