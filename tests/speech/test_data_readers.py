"""Every reader on a small corpus in its format, and on broken ones."""

from __future__ import annotations

import gzip
import json
import tarfile

import numpy as np
import pytest
import soundfile

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data import FORMATS, read_audio, read_corpus


def tone(path, seconds=1.0, rate=16_000, channels=1, frequency=440.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * frequency * time)
    soundfile.write(path, np.stack([wave * (1 + c) / 2 for c in range(channels)], axis=1), rate)
    return path


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def make_librispeech(root):
    folder = root / "train-clean" / "84" / "121123"
    for number in range(2):
        tone(folder / f"84-121123-000{number}.flac")
    lines(folder / "84-121123.trans.txt", "84-121123-0000 GO ON", "84-121123-0001 AND THEN STOP")
    return root


def make_ami(root):
    for number in range(2):
        tone(root / "ES2002a" / "audio" / f"ES2002a.Headset-{number}.wav")
    return root


def make_yodas(root):
    names = ["abcdefghijk-00000-00000000-00000100", "abcdefghijk-00001-00000100-00000150"]
    (root / "en000" / "audio").mkdir(parents=True)
    with tarfile.open(root / "en000" / "audio" / "00000000.tar.gz", "w:gz") as archive:
        for name, seconds in zip(names, (1.0, 0.5), strict=True):
            archive.add(tone(root / "wav" / f"{name}.wav", seconds), f"./{name}.wav")
    lines(root / "en000" / "text" / "00000000.txt", f"{names[0]} hello there")
    lines(root / "en000" / "duration" / "00000000.txt", f"{names[0]} 1.0", f"{names[1]} 0.5")
    return root / "en000"


def make_nemo(root):
    tone(root / "wav" / "a.wav", 2.0)
    return lines(
        root / "manifest.json",
        {"audio_filepath": "wav/a.wav", "duration": 0.5, "text": "one", "lang": "en"},
        {"audio_filepath": str(root / "wav" / "a.wav"), "duration": 1.0, "offset": 0.75},
    )


def make_speechbrain(root):
    tone(root / "wav" / "a.wav")
    return lines(
        root / "train.csv",
        "ID, duration, wav, spk_id, wrd",
        'a, 1.0, $data_root/wav/a.wav, s1, "ONE, TWO"',
        "b, 1.0, wav/a.wav, , ",
    )


def cut(root, **changes):
    source = {"type": "file", "channels": [0, 1], "source": str(root / "a.wav")}
    return {
        "id": "cut-0", "start": 0.25, "duration": 0.5, "channel": 1, "type": "MonoCut",
        "supervisions": [
            {"id": "s1", "start": 0.3, "duration": 0.2, "text": "there", "speaker": "bo"},
            {"id": "s0", "start": 0.0, "duration": 0.2, "text": "hello", "speaker": "bo",
             "language": "en"},
        ],
        "recording": {"id": "r", "sources": [source], "sampling_rate": 16_000,
                      "num_samples": 16_000, "duration": 1.0},
        **changes,
    }  # fmt: skip


def make_lhotse(root):
    tone(root / "a.wav", channels=2)
    path = root / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(cut(root)).encode()))
    return path


def make_folder(root):
    tone(root / "x" / "a.wav")
    tone(root / "b.flac")
    (root / "x" / "a.txt").write_text("hello\nthere\n")
    return root


CORPORA = {
    "librispeech": make_librispeech,
    "ami": make_ami,
    "yodas": make_yodas,
    "nemo": make_nemo,
    "speechbrain": make_speechbrain,
    "lhotse": make_lhotse,
    "folder": make_folder,
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_recognised_and_its_audio_can_be_read(tmp_path, name):
    path = CORPORA[name](tmp_path)
    found = read_corpus(path)
    assert found == read_corpus(path, format=name)
    for utterance in found:
        samples = read_audio(utterance)
        assert samples.dtype == np.float32
        if utterance.duration is not None:
            assert len(samples) == pytest.approx(16_000 * utterance.duration, abs=2)


def by_id(path, **options):
    return {each.id: each for each in read_corpus(path, **options)}


def test_librispeech(tmp_path):
    found = by_id(make_librispeech(tmp_path))
    assert found["84-121123-0001"].text == "and then stop"
    assert found["84-121123-0000"].speaker == "84"


def test_ami(tmp_path):
    found = by_id(make_ami(tmp_path))
    assert set(found) == {"ES2002a.Headset-0", "ES2002a.Headset-1"}
    assert found["ES2002a.Headset-1"].speaker == "ES2002a-1"
    tone(tmp_path / "ES2002a" / "audio" / "ES2002a.Array1-01.wav")
    with pytest.raises(DatasetError, match="the same speech twice"):
        read_corpus(tmp_path)
    assert set(by_id(tmp_path, format="ami-sdm")) == {"ES2002a.Array1-01"}
    assert len(by_id(tmp_path, format="ami-ihm")) == 2


def test_yodas(tmp_path):
    found = by_id(make_yodas(tmp_path))
    first, second = found.values()
    assert (first.text, second.text) == ("hello there", None)
    assert (first.speaker, first.language, second.duration) == ("abcdefghijk", "en", 0.5)


def test_nemo(tmp_path):
    first, second = by_id(make_nemo(tmp_path)).values()
    assert (first.text, first.language, first.offset) == ("one", "en", 0.0)
    assert (second.text, second.offset, second.duration) == (None, 0.75, 1.0)


def test_speechbrain(tmp_path):
    found = by_id(make_speechbrain(tmp_path))
    assert (found["a"].text, found["a"].speaker) == ("ONE, TWO", "s1")
    assert (found["b"].text, found["b"].speaker) == (None, None)


def test_lhotse(tmp_path):
    (found,) = by_id(make_lhotse(tmp_path)).values()
    assert (found.text, found.speaker, found.language) == ("hello there", "bo", "en")
    assert (found.offset, found.channel) == (0.25, 1)
    # The second channel is twice as loud as the first.
    assert np.abs(read_audio(found)).max() == pytest.approx(0.3, abs=0.01)


def test_a_folder(tmp_path):
    found = by_id(make_folder(tmp_path))
    assert found["x/a"].text == "hello there"
    assert found["b"].text is None


def broken_librispeech(root):
    make_librispeech(root)
    lines(root / "train-clean" / "84" / "121123" / "84-121123.trans.txt", "84-121123-0007 LOST")
    return root


def silent_librispeech(root):
    make_librispeech(root)
    lines(root / "train-clean" / "84" / "121123" / "84-121123.trans.txt", "84-121123-0000")
    return root


def yodas_without(part, text=None):
    def make(root):
        path = make_yodas(root)
        (path / part / "00000000.txt").unlink()
        if text is not None:
            lines(path / part / "00000000.txt", text)
        return path

    return make


def damaged_yodas(root):
    path = make_yodas(root)
    (path / "audio" / "00000000.tar.gz").write_bytes(b"\x1f\x8bdamaged")
    return path


def manifest(name, *rows):
    return lambda root: lines(root / name, *rows)


def cuts(**changes):
    return lambda root: lines(root / "cuts.jsonl", cut(root), cut(root, **changes))


@pytest.mark.parametrize(
    ("make", "format", "message"),
    [
        (lambda root: root / "nothing", "auto", "there is no corpus at"),
        (lambda root: root, "auto", "no corpus of a known format"),
        (lambda root: root, "folder", "holds no utterance"),
        (manifest("a.json", {"x": 1}), "auto", "no corpus of a known format"),
        (broken_librispeech, "auto", r"trans.txt, line 1: there is no 84-121123-0007.flac"),
        (silent_librispeech, "auto", r"trans.txt, line 1: 84-121123-0000 has no transcript"),
        (yodas_without("duration"), "auto", "a shard needs its durations"),
        (yodas_without("duration", "other 1.0"), "auto", "the duration of abcdefghijk-00000"),
        (yodas_without("duration", "lonely"), "auto", "line 1: 'lonely', expected a name and"),
        (yodas_without("text", "lonely"), "auto", "line 1: 'lonely', expected a name and"),
        (damaged_yodas, "auto", "cannot be unpacked"),
        (manifest("a.json", {"audio_filepath": "a.wav"}, "{"), "auto", "a.json, line 2 is no JSON"),
        (manifest("a.json", {"audio_filepath": "a.wav"}, "[1]"), "auto", "line 2 is list"),
        (manifest("a.json", {"duration": 1.0}), "nemo", "line 1: 'audio_filepath' is None"),
        (manifest("a.json", {"audio_filepath": "a.wav", "duration": "x"}), "nemo",
         "duration is 'x', expected seconds"),
        (manifest("a.json", {"audio_filepath": "a.wav", "duration": -1}), "nemo", "is -1"),
        (manifest("a.json", {"audio_filepath": "a.wav"}, {"audio_filepath": "a.wav"}), "nemo",
         "occur more than once, such as 'a.wav'"),
        (manifest("a.csv", "ID,wav", "a,b.wav"), "auto", "has no column duration"),
        (manifest("a.csv", "ID,duration,wav", ",1.0,b.wav"), "auto", "row 2: 'ID' is ''"),
        (manifest("a.csv", "ID,duration,wav", "a,long,b.wav"), "auto", "duration is 'long'"),
        (cuts(recording={}), "auto", "line 2: the cut has no recording"),
        (cuts(type="MultiCut"), "auto", "line 2: a MultiCut"),
        (cuts(duration=0), "auto", "line 2: the cut's duration is"),
        (cuts(channel=3), "auto", "channel 3 is not among the file's channels"),
        (lambda root: tone(root / "a.wav"), "auto", "no corpus of a known format"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, make, format, message):
    with pytest.raises(DatasetError, match=message):
        read_corpus(make(tmp_path), format=format)


def test_two_formats_in_one_folder_need_a_choice(tmp_path):
    make_librispeech(tmp_path)
    make_ami(tmp_path)
    with pytest.raises(DatasetError, match="could be librispeech or ami"):
        read_corpus(tmp_path)
    assert len(read_corpus(tmp_path, format="librispeech")) == 2


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(OptionError, match=f"expected auto or one of {', '.join(FORMATS)}"):
        read_corpus(tmp_path, format="kaldi")
