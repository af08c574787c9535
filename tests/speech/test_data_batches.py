"""Audio, and batches of it: order, shapes, shares of processes, resuming, what is skipped."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bilevel.batches import BatchStream
from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data import (
    AudioError,
    SpeechBatch,
    SpeechBatches,
    Utterance,
    in_pieces,
    read_audio,
)
from bilevel.problems.speech.data.audio import duration_of
from bilevel.problems.speech.inputs import FrontEnd
from bilevel.problems.speech.noise import key_of

RATE = 16_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty utterances of 0.4 to 2 s; the n-th has the constant-magnitude value n + 1."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    found = []
    for number, seconds in enumerate(random.uniform(0.4, 2.0, size=40)):
        samples = np.full(int(seconds * RATE), (number + 1) / 64)
        samples[1::2] *= -1
        path = folder / f"{number}.wav"
        soundfile.write(path, samples, RATE, subtype="FLOAT")
        found.append(Utterance(id=str(number), path=path, duration=len(samples) / RATE))
    return found


def sorted_names(batches):
    return sorted((each.id for batch in batches for each in batch.utterances), key=int)


def names(batches):
    return [[each.id for each in batch.utterances] for batch in batches]


# Audio


def test_a_part_of_a_file_is_read_alone_and_resampled(tmp_path):
    time = np.arange(48_000) / 48_000
    stereo = np.stack([np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 1000 * time)], axis=1)
    soundfile.write(tmp_path / "a.wav", 0.5 * stereo, 48_000)
    part = Utterance(id="a", path=tmp_path / "a.wav", offset=0.25, duration=0.5, channel=1)
    samples = read_audio(part)
    assert len(samples) == 8000
    peak = np.fft.rfftfreq(8000, 1 / RATE)[np.abs(np.fft.rfft(samples)).argmax()]
    assert peak == pytest.approx(1000, abs=2)
    whole = read_audio(dataclasses.replace(part, offset=0.0, duration=None, channel=0))
    assert len(whole) == 16_000


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.wav"
    samples = {"silent": np.zeros(8000), "empty": np.zeros(0)}.get(kind, np.ones(8000) / 2)
    if kind == "not finite":
        samples[100] = np.nan
    if kind != "missing":
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:30])
    duration = {"too long a claim": 3.0}.get(kind)
    return Utterance(id=kind, path=path, duration=duration, channel=int(kind == "no channel"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing"),
        ("truncated", "corrupt"),
        ("not finite", "corrupt"),
        ("too long a claim", "corrupt"),
        ("no channel", "corrupt"),
        ("empty", "empty"),
        ("silent", "silent"),
    ],
)
def test_audio_that_cannot_be_used_says_why(tmp_path, kind, reason):
    with pytest.raises(AudioError, match=kind) as caught:
        read_audio(broken(tmp_path, kind))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": -1.0}, r"'a': offset=-1.0, expected seconds"),
        ({"offset": float("nan")}, "offset=nan"),
        ({"duration": float("inf")}, "duration=inf"),
        ({"duration": "1"}, "duration='1'"),
        ({"channel": -1}, "channel=-1, expected an integer"),
        ({"channel": 0.5}, "channel=0.5"),
        ({"path": None}, "path=None"),
    ],
)
def test_an_utterance_is_somewhere_in_a_file(changes, message):
    assert Utterance(id="a", path="a.wav").path == Path("a.wav")
    with pytest.raises(DatasetError, match=message):
        Utterance(**{"id": "a", "path": "a.wav", **changes})


def test_half_a_file_is_no_utterance(tmp_path):
    path = tmp_path / "a.mp3"  # whose header tells the whole length
    soundfile.write(path, np.random.default_rng(0).normal(size=4 * RATE) / 9, RATE)
    assert duration_of(Utterance(id="a", path=path)) == pytest.approx(4.0, abs=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"s of 4\S* s can be decoded") as caught:
        read_audio(Utterance(id="a", path=path))
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("name", [b"\xe9.wav", "é.wav".encode()])
def test_names_in_any_encoding_are_read(tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    soundfile.write(tmp_path / "a.wav", np.ones(RATE) / 2, RATE)
    (tmp_path / "a.wav").rename(path)
    (batch,) = SpeechBatches([Utterance(id=path.name, path=path)], batch_seconds=1.0)
    assert batch.lengths == RATE
    assert batch.keys == [key_of(0, 0, path.name)]


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("x" * 300 + ".wav", "too long"),
        ("a\0.wav", "null byte"),
        ("\ud800.wav", "encode"),
        (".", "is no file"),  # nor is a pipe, which would have to be waited for
        ("refused.wav", "Permission denied"),
    ],
)
def test_what_the_system_does_not_open_is_named(tmp_path, monkeypatch, path, fault):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "refused.wav").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=rf"utterance 'u' .*{fault}") as caught:
        read_audio(Utterance(id="u", path=tmp_path / path))
    assert caught.value.reason == "unreadable"


def test_a_member_of_an_archive_is_found_again_when_the_archive_has_changed(tmp_path):
    path = tmp_path / "a.tar"
    for order in (("a", "b"), ("b", "a")):
        with tarfile.open(path, "w") as archive:
            for name in order:
                wav = tmp_path / f"{name}.wav"
                soundfile.write(wav, np.full(8000, {"a": 0.25, "b": 0.5}[name]), RATE)
                archive.add(wav, wav.name)
        os.utime(path, ns=(0, ord(order[0])))
        assert read_audio(Utterance(id="b", path=path, member="b.wav"))[0] == 0.5
    with pytest.raises(AudioError, match="no file in the archive"):
        read_audio(Utterance(id="c", path=path, member="c.wav"))


def test_pieces_of_a_recording_are_equal_and_follow_each_other(tmp_path):
    ramp = np.linspace(0.1, 0.9, 5 * RATE)
    soundfile.write(tmp_path / "a.wav", ramp, RATE, subtype="FLOAT")
    whole = Utterance(id="a", path=tmp_path / "a.wav", offset=0.5, duration=4.5, text="one two")
    pieces = in_pieces([whole], 2.0)
    assert [(each.id, each.duration, each.text) for each in pieces] == [
        (f"a#{number}", 1.5, None) for number in range(3)
    ]
    joined = np.concatenate([read_audio(each) for each in pieces])
    np.testing.assert_array_equal(joined, read_audio(whole))
    assert in_pieces([whole], 4.5) == [whole]
    assert max(each.duration for each in in_pieces([whole], 0.7)) <= 0.7


# Batches


def test_every_utterance_comes_once_an_epoch_padded_to_few_lengths(corpus):
    batches = list(SpeechBatches(corpus, batch_seconds=6.0, buckets=4))
    assert sorted_names(batches) == [each.id for each in corpus]
    assert len({batch.waveforms.shape[1] for batch in batches}) <= 4
    for batch in batches:
        assert batch.waveforms.numel() <= 6.0 * RATE + batch.waveforms.shape[1]
        for row, length, utterance in zip(
            batch.waveforms, batch.lengths, batch.utterances, strict=True
        ):
            assert length == round(utterance.duration * RATE)
            assert torch.all(row[:length].abs() == (int(utterance.id) + 1) / 64)
            assert torch.count_nonzero(row[length:]) == 0


def test_the_order_depends_on_seed_and_epoch_alone(corpus):
    def order(seed, epoch, **options):
        loader = SpeechBatches(corpus, batch_seconds=6.0, seed=seed, **options)
        loader.set_epoch(epoch)
        return names(loader)

    assert order(0, 1) == order(0, 1) == order(0, 1, workers=3)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1, shuffle=False) == order(5, 3, shuffle=False)


def test_processes_together_see_the_batches_of_one(corpus):
    alone = names(SpeechBatches(corpus, batch_seconds=6.0))
    parts = [
        names(SpeechBatches(corpus, batch_seconds=6.0, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    together = [sorted(one + other) for one, other in zip(*parts, strict=True)]
    # A last batch of a single utterance cannot be shared.
    assert together == [sorted(each) for each in alone if len(each) > 1]


def test_keys_follow_the_utterance_and_the_epoch(corpus):
    def keys(epoch, **options):
        loader = SpeechBatches(corpus, batch_seconds=6.0, **options)
        loader.set_epoch(epoch)
        return {u.id: key for batch in loader for u, key in zip(batch.utterances, batch.keys)}  # noqa: B905

    first = keys(0)
    assert first == keys(0, workers=2)
    assert len(set(first.values())) == 40
    assert set(first.values()).isdisjoint(keys(1).values())


def test_a_stream_resumes_from_the_batch_drawn_last(corpus, monkeypatch):
    stream = BatchStream(SpeechBatches(corpus, batch_seconds=4.0, seed=2), "batches")
    count = len(stream.loader) + 3  # into the second epoch
    for _ in range(count):
        last = stream.next()
    saved, expected = stream.state_dict(), stream.next()
    other = BatchStream(SpeechBatches(corpus, batch_seconds=4.0, seed=2), "batches")
    read = []
    monkeypatch.setattr(
        "bilevel.problems.speech.data.batches.read_audio",
        lambda utterance: read.append(utterance.id) or read_audio(utterance),
    )
    other.load_state_dict(saved)
    assert names([other.last]) == names([last])
    found = other.next()
    assert names([found]) == names([expected])
    assert read == names([last])[0] + names([found])[0]
    assert len(list(other.loader)) == len(other.loader)  # the pass after begins at its beginning


def test_crops_are_parts_of_their_utterance_and_change_with_the_epoch(tmp_path):
    ramp = np.linspace(0.1, 0.9, 2 * RATE)
    soundfile.write(tmp_path / "a.wav", ramp, RATE, subtype="FLOAT")
    loader = SpeechBatches(
        [Utterance(id="a", path=tmp_path / "a.wav")], batch_seconds=1.0, crop_seconds=0.5
    )
    begins = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        (batch,) = loader
        row = batch.waveforms[0].double().numpy()
        assert len(row) == RATE // 2
        np.testing.assert_allclose(np.diff(row), np.diff(ramp)[0], atol=1e-6)
        begins.append(row[0])
    assert len(set(begins)) == 3


def test_what_cannot_be_used_is_skipped_and_reported(corpus, tmp_path):
    kinds = ["missing", "truncated", "silent", "too long a claim"]
    bad = [dataclasses.replace(broken(tmp_path, kind), duration=0.5) for kind in kinds[:3]]
    bad.append(broken(tmp_path, kinds[3]))
    short = dataclasses.replace(corpus[0], id="short", duration=0.1)
    long = dataclasses.replace(corpus[0], id="long", duration=99.0)
    with pytest.warns(UserWarning, match="2 of 46 utterances were skipped: 1 long .*1 short"):
        loader = SpeechBatches([*corpus, *bad, short, long], batch_seconds=6.0)
    with pytest.warns(UserWarning, match=r"6 of 46 utterances were skipped: 2 corrupt \(too long"):
        assert sorted_names(loader) == [each.id for each in corpus]
    assert sorted_names(loader) == [each.id for each in corpus]  # and no further warning
    assert loader.skipped == {
        "too long a claim": "corrupt", "truncated": "corrupt", "missing": "missing",
        "silent": "silent", "short": "short", "long": "long",
    }  # fmt: skip
    assert "none skipped" in SpeechBatches(corpus, batch_seconds=6.0).report()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("missing", {"duration": 0.5}),
        ("truncated", {"duration": None}),
        ("silent", {"duration": 0.5}),
        ("short", {"duration": 0.1}),
        ("long", {"duration": 99.0}),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_loader_skips_nothing(corpus, tmp_path, kind, changes, workers):
    utterance = dataclasses.replace(broken(tmp_path, kind), **changes)
    with pytest.raises(AudioError, match=f"utterance '{kind}'"):
        list(SpeechBatches([*corpus, utterance], batch_seconds=6.0, strict=True, workers=workers))


def test_a_pass_without_a_batch_is_an_error(tmp_path):
    silent = [
        dataclasses.replace(broken(tmp_path, "silent"), id=f"s{i}", duration=0.5) for i in range(3)
    ]
    loader = SpeechBatches(silent, batch_seconds=6.0)
    with (
        pytest.warns(UserWarning, match="3 silent"),
        pytest.raises(
            DatasetError, match=r"no utterance can be read. 3 of 3 .* 3 silent \(s0, s1, s2\)"
        ),
    ):
        list(loader)


@pytest.mark.parametrize(("samples", "kept"), [(880, True), (879, False)])
def test_what_is_shorter_than_a_frame_is_skipped_whatever_was_claimed(tmp_path, samples, kept):
    soundfile.write(tmp_path / "a.wav", np.ones(samples) / 2, RATE)
    utterance = Utterance(id="a", path=tmp_path / "a.wav", duration=0.1)
    loader = SpeechBatches([utterance], batch_seconds=1.0, min_seconds=0.055)
    if kept:
        (batch,) = loader
        assert FrontEnd()(batch, torch.device("cpu")).lengths.tolist() == [1]
    else:
        with pytest.warns(UserWarning, match="1 short"), pytest.raises(DatasetError):
            list(loader)


def test_a_batch_goes_to_cuda_out_of_page_locked_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append("pin") or x)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda x, device, non_blocking: calls.append((device.type, non_blocking)),
    )
    SpeechBatch(torch.zeros(1, 8), torch.tensor([8]), [], [0]).to("cuda")
    assert calls == ["pin", ("cuda", True)] * 2


def test_a_process_whose_part_cannot_be_read_takes_another_utterance(corpus, tmp_path):
    silent = dataclasses.replace(broken(tmp_path, "silent"), duration=0.5)
    loaders = [
        SpeechBatches([silent, corpus[0]], batch_seconds=8.0, buckets=1, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    with pytest.warns(UserWarning, match="1 silent"):
        assert [names(each) for each in loaders] == [[["0"]], [["0"]]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_seconds": 0.0}, OptionError, "batch_seconds"),
        ({"crop_seconds": 0}, OptionError, "crop_seconds=0"),
        ({"crop_seconds": 0.01}, OptionError, "crop_seconds=0.01, expected at least 0.055"),
        ({"min_seconds": 0.05}, OptionError, "min_seconds=0.05, expected at least 0.055"),
        ({"rank": 0.5, "world_size": 2}, OptionError, "rank=0.5"),
        ({"rank": 2, "world_size": 2}, OptionError, "rank=2"),
        ({"world_size": 9, "batch_seconds": 4.0}, OptionError, "fewer than the 9 processes"),
        ({"min_seconds": 60.0, "max_seconds": 90.0}, DatasetError, "40 short"),
        ({"workers": -1}, OptionError, "workers"),
        ({"buckets": 0}, OptionError, "buckets"),
    ],
)
def test_options_that_make_no_batches_are_refused(corpus, options, error, message):
    with pytest.raises(error, match=message):
        SpeechBatches(corpus, **{"batch_seconds": 6.0, **options})


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_what_stands_in_for_a_part_that_cannot_be_read_is_whole_and_was_planned(corpus, tmp_path):
    silent = dataclasses.replace(broken(tmp_path, "silent"), duration=0.5)
    ordered = sorted(corpus, key=lambda each: -each.duration)
    loader = SpeechBatches([*ordered, silent], batch_seconds=1.0, max_seconds=1.5)
    durations = {each.id: each.duration for each in corpus}
    for batch in loader:
        for utterance, length in zip(batch.utterances, batch.lengths.tolist(), strict=True):
            assert durations[utterance.id] <= 1.5
            assert length == int(durations[utterance.id] * RATE)


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_pass_goes_on_where_it_stopped_also_behind_batches_that_cannot_be_read(
    corpus, tmp_path, count
):
    bad = [
        dataclasses.replace(broken(tmp_path, "silent"), id=f"s{i}", duration=0.5) for i in range(3)
    ]
    whole, resumed = (
        SpeechBatches([*corpus[:6], *bad], batch_seconds=0.4, seed=4) for _ in range(2)
    )
    expected = names(whole)
    assert len(expected) == len(whole) == 9
    resumed.skip(count)
    assert names(resumed) == expected[count:]
