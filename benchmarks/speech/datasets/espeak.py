from __future__ import annotations

from benchopt import BaseDataset

from bilevel.errors import BilevelError
from bilevel.problems.speech.data import espeak_corpus
from bilevel.problems.speech.sources import StoredSpeech


class Dataset(BaseDataset):
    """Sentences of Python's documentation spoken by espeak-ng; the test voices occur only there."""

    name = "espeak"
    requirements = ["pip::bilevel[speech]"]
    parameters = {"minutes, labelled_minutes, test_utterances": [(60.0, 5.0, 200)]}
    parameter_template = "{minutes:g} min, {labelled_minutes:g} with labels"

    def get_data(self):
        try:
            corpus = espeak_corpus(
                train_minutes=self.minutes,
                labelled_minutes=self.labelled_minutes,
                test_utterances=self.test_utterances,
            )
            return {"source": StoredSpeech.read(corpus), "reason": ""}
        except BilevelError as error:
            return {"source": None, "reason": str(error)}
