"""Speech data: one record, readers of the common formats, batches, and a corpus of its own."""

from bilevel.problems.speech.data.audio import AudioError, read_audio
from bilevel.problems.speech.data.batches import SpeechBatch, SpeechBatches
from bilevel.problems.speech.data.corpus import FORMATS, read_corpus
from bilevel.problems.speech.data.espeak import SpeechCorpus, espeak_corpus
from bilevel.problems.speech.data.pieces import in_pieces
from bilevel.problems.speech.data.records import Phone, Utterance

__all__ = [
    "FORMATS",
    "AudioError",
    "Phone",
    "SpeechBatch",
    "SpeechBatches",
    "SpeechCorpus",
    "Utterance",
    "espeak_corpus",
    "in_pieces",
    "read_audio",
    "read_corpus",
]
