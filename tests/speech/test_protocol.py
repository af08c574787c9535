"""Pretraining, fine-tuning and measuring, on speech made of spectra."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from signals import model, options, spoken_store

from bilevel.errors import DatasetError
from bilevel.problems.speech import FeatureStore, PretrainingOptions
from bilevel.problems.speech.protocol import Decoded, Protocol, decode, vocabulary_of
from bilevel.problems.speech.recognition import (
    BeamSearch,
    FineTuningOptions,
    Transcript,
    estimate_ngrams,
)
from bilevel.problems.speech.representation import representation
from bilevel.problems.speech.sources import StoredSpeech

STORES = StoredSpeech(
    spoken_store(60, 0), spoken_store(12, 1), spoken_store(16, 2),
    batch_size=12, crop_frames=64, batch_frames=1000,
)  # fmt: skip
PROTOCOL = Protocol(
    pretraining=PretrainingOptions(steps=60, lr=3e-3),
    finetuning=FineTuningOptions(head_lr=3e-3, encoder_lr=1e-3, augment=None),
    finetuning_steps=160,
)


@pytest.fixture(scope="module")
def pretrained():
    return PROTOCOL.pretrain(STORES, options(), "birq", seed=0, progress=False)


def test_measures_are_those_of_the_frames(pretrained):
    found = PROTOCOL.represent(STORES, pretrained.model)
    assert len(found.probes) == 2 + 3  # the input, the front end, three layers
    # Six phones with a spectrum each are plain to see in the input, at the frames' boundaries less.
    assert found.probes[0].value > 0.85
    assert all(each.low <= each.value <= each.high for each in found.probes)
    for quality in (found.anchor, found.enhanced):
        assert 1 < quality.perplexity <= 64
        assert 0 < quality.coverage <= 1
        assert 1 / 6 < quality.accuracy < 1
        assert 0.1 < quality.information < 1


def test_labels_that_say_nothing_are_measured_as_such():
    network = model()
    shuffled = spoken_store(16, 2)
    random = np.random.default_rng(0)
    noise = [torch.tensor(random.normal(size=each.shape)).half() for each in shuffled.features]
    shuffled.features = noise
    network.calibrate(shuffled.batches(1000))
    found = representation(network, shuffled.batches(1000), shuffled.batches(1000))
    assert abs(found.anchor.information) < 0.05
    assert found.anchor.accuracy < 0.5


def test_speech_without_phones_is_not_probed(pretrained):
    texts = StoredSpeech(STORES.train, spoken(12, 1), spoken(16, 2))
    with pytest.raises(DatasetError, match="probes need utterances with phones"):
        PROTOCOL.represent(texts, pretrained.model)
    assert vocabulary_of(texts).kind == "characters"


def spoken(count, seed):
    """Utterances of which the text is known alone."""
    store = spoken_store(count, seed)
    utterances = [dataclasses.replace(each, phones=(), text="a b") for each in store.utterances]
    return FeatureStore(store.features, utterances)


def test_case_and_punctuation_are_no_errors():
    decoded = Decoded([Transcript("1", "It\u2019s so, Ann!", "it's so ann")], "word", 0.0)
    assert decoded.errors.errors.tolist() == decoded.character_errors.errors.tolist() == [0]


@pytest.mark.parametrize(("unit", "errors", "characters"), [("word", 1, 2), ("phone", 1, None)])
def test_texts_are_scored_in_words_and_characters_and_phones_alone(unit, errors, characters):
    decoded = Decoded([Transcript("1", "aa bcd", "aa bxy")], unit, 0.0)
    assert decoded.errors.errors.tolist() == [errors]
    found = decoded.character_errors
    assert (found and found.errors.tolist()) == (characters and [characters])


def test_recognition_beats_guessing_and_is_paired_by_utterance(pretrained):
    encoder = pretrained.model.encoder
    before = [each.clone() for each in encoder.parameters()]
    found = PROTOCOL.recognise(STORES, encoder, seed=0, progress=False)
    heard = found.greedy.transcripts
    assert [each.id for each in heard] == sorted(u.id for u in STORES.test.utterances)
    assert found.beam is None
    assert found.errors.rate().value < 0.5
    assert found.errors.lengths.sum() == sum(len(u.phones) for u in STORES.test.utterances)
    assert any(
        not torch.equal(one, other) for one, other in zip(before, encoder.parameters(), strict=True)
    )


def test_a_language_model_repairs_what_is_misheard():
    vocabulary = vocabulary_of(STORES)
    # It knows what is said, as no honest one would.
    said = [vocabulary.words(each) for each in STORES.test.utterances]
    search = BeamSearch(vocabulary=vocabulary, language_model=estimate_ngrams(said, 4))
    torch.manual_seed(0)
    brief = dataclasses.replace(PROTOCOL, finetuning_steps=80)
    found = brief.recognise(STORES, model().encoder, seed=0, search=search, progress=False)
    assert [(each.id, each.reference) for each in found.beam.transcripts] == [
        (each.id, each.reference) for each in found.greedy.transcripts
    ]
    assert found.beam.errors.rate().value < 0.7 * found.greedy.errors.rate().value
    assert decode(found.recogniser, STORES, search).transcripts == found.beam.transcripts


def test_arms_of_one_seed_begin_with_the_same_encoder_and_the_same_labels():
    scratch = PROTOCOL.pretrain(STORES, options(), "scratch", seed=4, progress=False).model
    brief = dataclasses.replace(PROTOCOL, pretraining=PretrainingOptions(steps=1, lr=1e-12))
    best_rq = brief.pretrain(STORES, options(), "best-rq", seed=4, progress=False).model
    for one, other in zip(scratch.parameters(), best_rq.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(scratch.codebook.codes, best_rq.codebook.codes)


def test_a_finished_model_labels_for_the_next_one(pretrained):
    brief = dataclasses.replace(PROTOCOL, pretraining=PretrainingOptions(steps=3))
    found = brief.pretrain(
        STORES, options(), "relabel", seed=1, teacher=pretrained.model, progress=False
    )
    assert (found.history["upper"] == 0).all()
    assert found.seconds > 0
