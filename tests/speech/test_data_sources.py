"""Where the stages take their speech from: every file once, every test utterance, what was not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from signals import spoken_store

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech import sources
from bilevel.problems.speech.data import AudioError, Phone, SpeechCorpus, Utterance, audio
from bilevel.problems.speech.sources import StoredSpeech, StreamedSpeech

RATE = 16_000


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Makes an utterance of so many seconds."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)

    def make(name, seconds=0.5, **more):
        path = folder / f"{name}.wav"
        if not path.exists():
            soundfile.write(path, random.normal(size=int(seconds * RATE)) / 9, RATE)
        return Utterance(id=name, path=path, **{"text": "a b", **more})

    return make


def streamed(train, labelled, test, **options):
    return StreamedSpeech(train, labelled, test, torch.device("cpu"), 20.0, **options)


def names(batches):
    return sorted(each.id for batch in batches for each in batch.utterances)


def silenced(utterance):
    path = utterance.path.with_name(f"silent-{utterance.path.name}")
    soundfile.write(path, np.zeros(RATE // 2), RATE)
    return dataclasses.replace(utterance, path=path)


def test_recordings_are_learnt_from_in_pieces(speech):
    recording = speech("recording", 5.0)
    source = streamed([recording, speech("t0")], [], [], max_seconds=2.0)
    found = names(source.pretraining(0))
    assert found == ["recording#0", "recording#1", "recording#2", "t0"]
    assert names(source.sampled()) == found


def test_every_utterance_of_the_test_is_heard_whatever_its_length(speech):
    test = [speech("brief", 0.08), speech("middling"), speech("lengthy", 31.0)]
    source = streamed([speech("t0")], [speech("l0")], test, max_seconds=1.0)
    assert names(source.tested()) == ["brief", "lengthy", "middling"]
    assert source.skipped == {}


@pytest.mark.parametrize("name", ["gone", "silent"])
def test_a_test_utterance_that_cannot_be_heard_is_an_error(speech, name):
    bad = speech("s0")
    bad = silenced(bad) if name == "silent" else dataclasses.replace(bad, path="gone.wav")
    with pytest.raises(AudioError, match="utterance 's0'"):
        list(streamed([speech("t0")], [speech("l0")], [bad, speech("s1")]).tested())
    corpus = SpeechCorpus([speech("t0")], [speech("l0")], [bad, speech("s1")])
    with pytest.raises(AudioError, match="utterance 's0'"):
        StoredSpeech.read(corpus)


def test_a_missing_test_file_is_met_before_training(speech):
    gone = dataclasses.replace(speech("s0"), path="gone.wav", duration=1.0)
    with pytest.raises(AudioError, match="there is no such file"):
        streamed([speech("t0")], [speech("l0")], [gone])


def test_what_is_skipped_is_told_by_part(speech):
    train = [speech("t0"), dataclasses.replace(speech("t1"), path="gone.wav"), speech("t2")]
    labelled = [speech("l0"), silenced(speech("l1")), speech("l2", 3.0)]
    expected = {"train": {"t1": "missing"}, "labelled": {"l1": "silent", "l2": "long"}}
    source = streamed(train, labelled, [speech("s0")], max_seconds=2.0)
    assert source.skipped == {}
    with pytest.warns(UserWarning, match="1 missing"):
        assert names(source.pretraining(0)) == names(source.sampled()) == ["t0", "t2"]
    with pytest.warns(UserWarning, match="1 long"):
        batches = source.labelled(0)
    assert source.skipped["labelled"] == {"l2": "long"}
    with pytest.warns(UserWarning, match="1 silent"):
        assert names(batches) == ["l0"]
    assert source.skipped == expected
    with pytest.warns(UserWarning, match="were skipped"):
        stored = StoredSpeech.read(SpeechCorpus(train, labelled, [speech("s0")]))
    assert stored.skipped == {"train": {"t1": "missing"}, "labelled": {"l1": "silent"}}
    assert stored.to("cpu").skipped == stored.skipped


def test_files_are_measured_once(speech, monkeypatch):
    source = streamed([speech(f"t{i}") for i in range(3)], [speech("l0")], [speech("s0")])
    looked = []
    measure = audio.duration_of
    monkeypatch.setattr(audio, "duration_of", lambda each: looked.append(each.id) or measure(each))
    for seed in range(2):
        for batches in (source.pretraining(seed), source.labelled(seed), source.sampled()):
            assert len(batches) > 0
    assert sorted(looked) == ["l0", "t0", "t1", "t2"]


@pytest.mark.parametrize(("count", "last"), [(3, 2), (400, 399), (999, 996), (4000, 3990)])
def test_the_sample_is_from_all_of_the_corpus(speech, count, last):
    utterance = dataclasses.replace(speech("t0"), duration=0.5)
    train = [dataclasses.replace(utterance, id=f"{i:04d}") for i in range(count)]
    source = streamed(train, [], [])
    found = sorted(each.id for each in source.sampled().batches.utterances)
    assert len(found) == min(count, 400)
    assert (found[0], found[-1]) == ("0000", f"{last:04d}")
    assert np.diff([int(each) for each in found]).max() <= -(-count // 400)


@pytest.mark.parametrize("text", [None, "", " "])
def test_a_missing_transcript_is_met_before_training(speech, text):
    bare = dataclasses.replace(speech("l1"), text=text)
    with pytest.raises(DatasetError, match=r"1 of the 3 utterances .* no transcript, such as 'l1'"):
        streamed([speech("t0")], [speech("l0"), bare], [speech("s0")])
    phones = (Phone("a", 0.0, 0.5),)
    aligned = [dataclasses.replace(each, phones=phones) for each in (bare, speech("s0"))]
    assert streamed([speech("t0")], aligned[:1], aligned[1:]).transcribed == aligned


def test_the_same_audio_is_not_learnt_from_and_tested_on(speech, tmp_path):
    train, one = [speech("t0")], speech("l0")
    other = dataclasses.replace(speech("s0"), id="l0")  # of the same name, in another folder
    assert names(streamed(train, [one], [other]).tested()) == ["l0"]
    (tmp_path / "link.wav").symlink_to(one.path)
    same = dataclasses.replace(one, id="another", path=tmp_path / "link.wav")
    with pytest.raises(DatasetError, match=r"1 utterances are both .* such as 'another'"):
        streamed(train, [one], [same])
    later = dataclasses.replace(one, id="later", offset=0.25)
    assert names(streamed(train, [one], [later]).tested()) == ["later"]


def test_pretraining_on_what_is_tested_on_is_pointed_out(speech):
    with pytest.warns(UserWarning, match="1 of the 2 utterances to be tested on are among those"):
        streamed([speech("x0"), speech("x1")], [speech("l0")], [speech("x1"), speech("x2")])


def test_stored_speech_is_for_one_process(monkeypatch):
    stores = (spoken_store(4, seed) for seed in range(3))
    source = StoredSpeech(*stores, batch_size=2)
    monkeypatch.setattr(sources, "world_size", lambda: 2)
    for loader in (source.pretraining, source.labelled):
        with pytest.raises(OptionError, match="StoredSpeech is for one process, and here are 2"):
            loader(0)
    assert len(list(source.tested())) > 0
