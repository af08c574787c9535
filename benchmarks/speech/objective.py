from __future__ import annotations

from dataclasses import replace

from benchopt import BaseObjective

from bilevel.problems.speech import PRESETS, PretrainingOptions, SpeechModel
from bilevel.problems.speech.protocol import Protocol, vocabulary_of
from bilevel.problems.speech.recognition import BeamSearch, FineTuningOptions, estimate_ngrams


class Objective(BaseObjective):
    """What a pretrained encoder is worth on voices never heard.

    ``value`` is the phone error rate after fine-tuning, by greedy decoding; ``searched`` that by
    beam search with trigrams of the labelled transcripts. Linear probes and the perplexity of the
    enhanced codes, over the anchors', are of the encoder before.
    """

    name = "Speech pretraining"
    url = "../../../benchmarks/speech"
    requirements = ["pip::bilevel[speech]"]
    min_benchopt_version = "1.6"
    sampling_strategy = "run_once"
    parameters = {"codebooks": [4], "finetuning_steps": [600]}

    def skip(self, source, reason):
        return source is None, reason or None

    def set_data(self, source, reason):
        self.source = source
        options = PRESETS["tiny"]
        self.options = replace(options, labels=replace(options.labels, codebooks=self.codebooks))
        self.protocol = Protocol(
            pretraining=PretrainingOptions(steps=1),  # solvers pretrain
            finetuning=FineTuningOptions(
                head_lr=0.01, encoder_lr=0.002, frozen_steps=self.finetuning_steps // 6
            ),
            finetuning_steps=self.finetuning_steps,
        )
        vocabulary = vocabulary_of(source)
        transcripts = [vocabulary.words(each) for each in source.labelled_store.utterances]
        self.search = BeamSearch(vocabulary=vocabulary, language_model=estimate_ngrams(transcripts))

    def get_objective(self):
        return {"source": self.source, "options": self.options}

    def evaluate_result(self, model, seed):
        measured = self.protocol.represent(self.source, model)
        heard = self.protocol.recognise(
            self.source, model.encoder, seed, search=self.search, progress=False
        )
        rate, searched = heard.errors.rate(), heard.beam.errors.rate()
        return {
            "value": rate.value,
            "low": rate.low,
            "high": rate.high,
            "searched": searched.value,
            "searched_low": searched.low,
            "searched_high": searched.high,
            "perplexity_ratio": measured.enhanced.perplexity / measured.anchor.perplexity,
            "best_probe": max(each.value for each in measured.probes[2:]),
            "features_probe": measured.probes[0].value,
            "finetuning_seconds": heard.seconds,
            "search_seconds": heard.beam.seconds,
        }

    def get_one_result(self):
        model = SpeechModel(self.options)
        model.calibrate(self.source.sampled())
        return {"model": model.eval(), "seed": 0}
