"""Recognition: CTC fine-tuning of an encoder, and decoding with or without a language model."""

from bilevel.problems.speech.recognition.arpa import read_arpa, write_arpa
from bilevel.problems.speech.recognition.augmentation import SpecAugment
from bilevel.problems.speech.recognition.beam import BeamSearch, Hypothesis
from bilevel.problems.speech.recognition.ctc import CTCObjective
from bilevel.problems.speech.recognition.finetuning import finetune
from bilevel.problems.speech.recognition.finetuning_options import FineTuningOptions
from bilevel.problems.speech.recognition.greedy import greedy_decode
from bilevel.problems.speech.recognition.kneser_ney import estimate_ngrams
from bilevel.problems.speech.recognition.ngram import Level, NGramModel
from bilevel.problems.speech.recognition.recogniser import (
    Recogniser,
    Transcript,
    transcribe,
)
from bilevel.problems.speech.recognition.tokens import Vocabulary

__all__ = [
    "BeamSearch",
    "CTCObjective",
    "FineTuningOptions",
    "Hypothesis",
    "Level",
    "NGramModel",
    "Recogniser",
    "SpecAugment",
    "Transcript",
    "Vocabulary",
    "estimate_ngrams",
    "finetune",
    "greedy_decode",
    "read_arpa",
    "transcribe",
    "write_arpa",
]
