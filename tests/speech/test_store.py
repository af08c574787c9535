"""Features in memory, and loaders over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from signals import spoken_store

from bilevel.batches import BatchStream
from bilevel.errors import DatasetError
from bilevel.problems.speech import FeatureStore
from bilevel.problems.speech.data import SpeechBatch
from bilevel.problems.speech.features import LogMel, normalise

STORE = spoken_store(30)


def test_crops_come_from_their_utterances_once_an_epoch():
    loader = STORE.crops(batch_size=7, frames=50, seed=3)
    seen = []
    for batch in loader:
        assert batch.features.shape == (7, 48, 80)  # a multiple of four
        assert batch.counts is None
        for row, utterance in zip(batch.features, batch.utterances, strict=True):
            whole = STORE.features[STORE.utterances.index(utterance)].float()
            assert any(torch.equal(whole[i : i + 48], row) for i in range(len(whole) - 47))
            seen.append(utterance.id)
    assert len(seen) == len(set(seen)) == 28


def test_crops_depend_on_seed_and_epoch_alone():
    def first(seed, epoch):
        loader = STORE.crops(8, 48, seed)
        loader.set_epoch(epoch)
        return next(iter(loader))

    assert torch.equal(first(0, 2).features, first(0, 2).features)
    assert first(0, 2).keys == first(0, 2).keys
    assert not torch.equal(first(0, 2).features, first(0, 3).features)
    assert not torch.equal(first(0, 2).features, first(1, 2).features)
    keys = {key for epoch in range(3) for batch in [first(0, epoch)] for key in batch.keys}
    assert len(keys) == 24  # an utterance has another key in another epoch


def test_shorter_utterances_are_padded():
    batch = next(iter(STORE.crops(30, 10_000)))
    longest = max(map(len, STORE.features))
    assert batch.features.shape[1] == longest + -longest % 4
    counts = dict(zip((each.id for each in batch.utterances), batch.frame_counts, strict=True))
    for features, utterance in zip(STORE.features, STORE.utterances, strict=True):
        assert counts[utterance.id] == len(features)


def test_whole_utterances_come_in_batches_of_bounded_size_and_like_length():
    batches = list(STORE.batches(1000))
    assert sorted(u.id for b in batches for u in b.utterances) == sorted(
        u.id for u in STORE.utterances
    )
    for batch in batches:
        assert batch.features.shape[0] * batch.features.shape[1] <= 1000 + 4 * len(batch.features)
    assert [len(b.utterances) for b in STORE.batches(1)] == [1] * 30
    shuffled = [[u.id for u in b.utterances] for b in STORE.batches(1000, seed=0)]
    assert sorted(map(tuple, shuffled)) == sorted(
        tuple(u.id for u in b.utterances) for b in batches
    )


def test_a_stream_of_crops_resumes_where_it_stood():
    stream = BatchStream(STORE.crops(8, 48), "batches")
    for _ in range(5):
        stream.next()
    saved = stream.state_dict()
    expected = stream.next().features
    other = BatchStream(STORE.crops(8, 48), "batches")
    other.load_state_dict(saved)
    assert torch.equal(other.next().features, expected)


def test_a_selection():
    part = STORE.select([2, 5])
    assert [each.id for each in part.utterances] == ["0-2", "0-5"]
    assert torch.equal(part.features[1], STORE.features[5])


def test_what_makes_no_batches_is_refused():
    with pytest.raises(DatasetError, match="a batch of 31 crops from 30 utterances"):
        STORE.crops(31, 48)
    with pytest.raises(DatasetError, match="no utterance"):
        FeatureStore([], [])
    with pytest.raises(DatasetError, match="features of 2 utterances, and 1 names"):
        FeatureStore(STORE.features[:2], STORE.utterances[:1])
    short = FeatureStore([torch.zeros(3, 80)], STORE.utterances[:1])
    with pytest.raises(DatasetError, match="utterance '0-0' has 3 feature frames"):
        next(iter(short.batches(100)))


def test_reading_keeps_the_features_of_each_utterance_without_padding():
    random = np.random.default_rng(0)
    lengths = torch.tensor([16_000, 9_000])
    waveforms = torch.zeros(2, 16_000)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = torch.tensor(random.normal(size=int(length)))
    batch = SpeechBatch(waveforms, lengths, STORE.utterances[:2], [0, 1])
    read = FeatureStore.read([batch])
    assert [len(each) for each in read.features] == [98, 54]
    features, counts = LogMel()(waveforms, lengths)
    expected = normalise(features, counts)
    for row, found, count in zip(expected, read.features, counts, strict=True):
        torch.testing.assert_close(found.float(), row[:count], atol=2e-3, rtol=0)
    assert read.utterances == STORE.utterances[:2]
