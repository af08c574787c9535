# ruff: noqa: RUF001 (the letters of IPA are meant)
"""The corpus that espeak-ng speaks."""

from __future__ import annotations

import json
import shutil

import pytest

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data import espeak, espeak_corpus, read_audio
from bilevel.problems.speech.data.espeak import TEST_VARIANTS, VARIANTS
from bilevel.problems.speech.data.phones import PHONES, SILENCE, fold_phone
from bilevel.problems.speech.data.sentences import library_sentences

SIZES = {"train_minutes": 0.3, "labelled_minutes": 0.1, "test_utterances": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("espeak") / "corpus"


@pytest.fixture(scope="module")
def corpus(folder):
    return espeak_corpus(folder, **SIZES, progress=False)


def everything(corpus):
    return [*corpus.train, *corpus.labelled, *corpus.test]


def test_parts_have_the_sizes_asked_for(corpus):
    assert 18 <= sum(each.duration for each in corpus.train) < 26
    assert 6 <= sum(each.duration for each in corpus.labelled) < 14
    assert len(corpus.test) == 5
    assert len({each.id for each in everything(corpus)}) == len(everything(corpus))


def test_test_voices_and_sentences_are_heard_nowhere_else(corpus):
    learnt = [*corpus.train, *corpus.labelled]
    assert {each.speaker.split("+")[1] for each in corpus.test} <= set(TEST_VARIANTS)
    assert {each.speaker.split("+")[1] for each in learnt} <= set(VARIANTS)
    assert set(TEST_VARIANTS).isdisjoint(VARIANTS)
    assert {each.text for each in corpus.test}.isdisjoint(each.text for each in learnt)


def test_phones_cover_the_audio_in_order(corpus):
    for each in everything(corpus):
        assert {phone.symbol for phone in each.phones} <= set(PHONES)
        assert sum(phone.symbol != SILENCE for phone in each.phones) >= 8
        for phone, later in zip(each.phones, each.phones[1:], strict=False):
            assert phone.start < phone.end <= later.start + 1e-9
        assert each.phones[0].start < 0.1
        assert each.phones[-1].end == pytest.approx(each.duration, abs=0.01)


def test_phones_are_where_the_sound_is(corpus):
    """A hissing s has more of its power above 4 kHz than a vowel has."""
    import numpy as np

    shares = {"s": [], "ɪ": []}
    for each in corpus.train:
        samples = read_audio(each)
        for phone in each.phones:
            if phone.symbol in shares and phone.end - phone.start > 0.04:
                part = samples[int(phone.start * 16_000) : int(phone.end * 16_000)]
                power = np.abs(np.fft.rfft(part)) ** 2
                shares[phone.symbol].append(power[len(power) // 2 :].sum() / power.sum())
    assert np.median(shares["s"]) > 3 * np.median(shares["ɪ"])


def test_audio_is_what_the_manifest_says(corpus):
    for each in everything(corpus)[:8]:
        assert len(read_audio(each)) == pytest.approx(16_000 * each.duration, abs=2)


def test_a_kept_corpus_is_read_again_and_another_is_refused(corpus, folder):
    before = (folder / "train" / "train-000000.flac").stat().st_mtime_ns
    assert espeak_corpus(folder, **SIZES) == corpus
    assert (folder / "train" / "train-000000.flac").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="holds another corpus"):
        espeak_corpus(folder, **{**SIZES, "seed": 1})


def test_choices_follow_the_seed(corpus, tmp_path):
    again = espeak_corpus(tmp_path / "again", **SIZES, progress=False)
    chosen = [(each.text, each.speaker) for each in everything(corpus)]
    assert chosen == [(each.text, each.speaker) for each in everything(again)]
    other = espeak_corpus(tmp_path / "other", **SIZES, seed=1, progress=False)
    assert chosen != [(each.text, each.speaker) for each in everything(other)]


def test_the_cache_folder_is_used_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BILEVEL_CACHE", "~/cache")
    tiny = {"train_minutes": 0.05, "labelled_minutes": 0.05, "test_utterances": 1}
    found = espeak_corpus(**tiny, progress=False)
    (place,) = (tmp_path / "cache").iterdir()
    assert found.train[0].path.is_relative_to(place)


@pytest.fixture
def kept(corpus, folder, tmp_path):
    """A copy of the corpus, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "kept")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("test.jsonl", b'{"id": 1'),
        ("test.jsonl", b'"text"'),
        ("test.jsonl", b'{"id": "a", "path": null, "phones": []}'),
        ("test.jsonl", b'{"id": "a", "path": "x", "phones": [[1]]}'),
        ("test.jsonl", b'{"id": "a", "path": "x", "phones": [], "duration": -1}'),
        ("test.jsonl", None),
        ("test.jsonl", b""),
        ("train.jsonl", b""),
        ("labelled.jsonl", b""),
        ("corpus.json", b""),
        ("corpus.json", b"[]"),
        ("corpus.json", b"null"),
        ("corpus.json", b"\xff\xfe"),
    ],
)
def test_a_damaged_corpus_is_refused(kept, file, content):
    (kept / file).unlink() if content is None else (kept / file).write_bytes(content)
    message = (
        "holds another corpus" if content == b"[]" else f"{file} is damaged .* remove the fold"
    )
    with pytest.raises(DatasetError, match=message):
        espeak_corpus(kept, **SIZES)


@pytest.mark.parametrize("part", ["train", "labelled", "test"])
def test_a_corpus_that_has_lost_an_utterance_is_refused(kept, part):
    lines = (kept / f"{part}.jsonl").read_text().splitlines(keepends=True)
    (kept / f"{part}.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DatasetError, match=rf"{part}.jsonl is damaged \(utterances are missing"):
        espeak_corpus(kept, **SIZES)


def test_a_foreign_place_is_refused_before_anything_is_spoken(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(espeak, "_speak", None)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    for place in (tmp_path / "b", tmp_path / "b" / "notes.txt"):
        with pytest.raises(DatasetError, match="is no empty folder and holds no corpus"):
            espeak_corpus(place, **SIZES)
    with pytest.raises(DatasetError, match=r"no corpus can be made at .*notes.txt"):
        espeak_corpus(tmp_path / "b" / "notes.txt" / "corpus", **SIZES)
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"
    (kept / "corpus.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(DatasetError, match="holds another corpus"):
        espeak_corpus(kept, **SIZES)


def test_a_corpus_that_another_process_has_made_meanwhile_is_read(
    corpus, folder, tmp_path, monkeypatch
):
    place = tmp_path / "corpus"
    speak = espeak._speak

    def spoken(*args):
        if not place.exists():
            shutil.copytree(folder, place)
        return speak(*args)

    monkeypatch.setattr(espeak, "_speak", spoken)
    found = espeak_corpus(place, **SIZES, progress=False)
    assert [each.path for each in found.test] == [
        place / each.path.relative_to(folder) for each in corpus.test
    ]
    for one, other in zip(everything(found), everything(corpus), strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_minutes": 0.0}, "train_minutes=0.0"),
        ({"train_minutes": "1"}, "train_minutes='1'"),
        ({"labelled_minutes": float("nan")}, "labelled_minutes=nan"),
        ({"test_utterances": 0}, "test_utterances"),
        ({"seed": -1}, "seed"),
    ],
)
def test_sizes_that_make_no_corpus_are_refused(sizes, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        espeak_corpus(tmp_path / "c", **sizes)


def test_sentences_are_plain_words_in_a_fixed_order():
    sentences = library_sentences()
    assert len(sentences) > 2000
    assert list(sentences) == sorted(set(sentences))
    assert all(4 <= len(each.split()) <= 14 for each in sentences)


def test_folding_drops_stress_and_accents():
    folded = {symbol: fold_phone(symbol) for symbol in ("ˈɪ", "ˌeɪ", "ɔːɹ", "əl", "ɾ", "", "ʉː")}
    assert folded == {
        "ˈɪ": "ɪ", "ˌeɪ": "eɪ", "ɔːɹ": "ɔː", "əl": "l", "ɾ": "t", "": "sil", "ʉː": "uː",
    }  # fmt: skip
    with pytest.raises(DatasetError, match="none of English"):
        fold_phone("ʘ")
