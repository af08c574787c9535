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


SEGMENTS = ["abcdefghijk-00000-00000000-00000100", "abcdefghijk-00001-00000100-00000150"]


def make_yodas(root):
    names = SEGMENTS
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


def test_yodas_unpacked_is_the_same_speech(tmp_path):
    path = make_yodas(tmp_path)
    zipped = {each.id: read_audio(each) for each in read_corpus(path)}
    shard = path / "audio" / "00000000.tar.gz"
    shard.with_suffix("").write_bytes(gzip.decompress(shard.read_bytes()))
    shard.unlink()
    unpacked = {each.id: read_audio(each) for each in read_corpus(path)}
    assert unpacked.keys() == zipped.keys()
    assert all(np.array_equal(unpacked[name], zipped[name]) for name in zipped)


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


def traversing_librispeech(root):
    make_librispeech(root)
    lines(root / "train-clean" / "84" / "121123" / "84-121123.trans.txt", "../x A")
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


def torn_yodas(root):
    """A shard whose archive ends early, packed without a fault of gzip's."""
    path = make_yodas(root)
    shard = path / "audio" / "00000000.tar.gz"
    archive = gzip.decompress(shard.read_bytes())
    shard.write_bytes(gzip.compress(archive[: len(archive) // 2]))
    return path


def spoilt_yodas(root):
    """A shard in which gzip's own check sum is wrong."""
    path = make_yodas(root)
    shard = path / "audio" / "00000000.tar.gz"
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1
    shard.write_bytes(content)
    return path


def manifest(name, *rows):
    return lambda root: lines(root / name, *rows)


def content(name, data):
    def make(root):
        (root / name).write_bytes(data)
        return root / name

    return make


def folder_with(text):
    def make(root):
        tone(root / "a.wav")
        (root / "a.txt").write_bytes(text)
        return root

    return make


def supervised(*supervisions):
    return cuts(supervisions=list(supervisions))


def with_channels(channels):
    def make(root):
        changed = cut(root)
        changed["recording"]["sources"][0]["channels"] = channels
        return lines(root / "cuts.jsonl", changed)

    return make


NEMO = json.dumps({"audio_filepath": "a.wav", "text": "é"}, ensure_ascii=False)
CSV = "ID,duration,wav,spk_id,wrd"


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
        (manifest("a.csv", "ID,duration,wav", ",1.0,b.wav"), "auto", "line 2: 'ID' is ''"),
        (manifest("a.csv", CSV, "a,1,b.wav,s,ONE, TWO"), "auto",
         "line 2 has 6 fields, and the header 5: put a text with a comma"),
        (manifest("a.csv", CSV, "a,1,b.wav"), "auto", "line 2 has 3 fields, and the header 5"),
        (manifest("a.csv", CSV, 'a,1,b.wav,s,"ONE', "b,1,b.wav,s,TWO"), "auto", "end of data"),
        (manifest("a.csv", CSV, "a,1,b.wav,s," + "x" * 200_000), "auto", "field larger than"),
        (content("a.csv", b""), "auto", "a.csv is empty"),
        (content("a.json", b""), "auto", "a.json is empty"),
        (content("a.json", b"{\n"), "auto", "a.json, line 1 is no JSON"),
        (content("a.json", NEMO.encode("latin-1")), "auto", "a.json is no text in UTF-8"),
        (content("a.csv", (CSV + "é").encode("latin-1")), "auto", "a.csv is no text in UTF-8"),
        (content("a.json.gz", gzip.compress(NEMO.encode())[:20]), "auto", "cannot be read: Compr"),
        (content("a.json.gz", gzip.compress(NEMO.encode())[:10] + b"\xff" * 50), "auto",
         "cannot be read: Error -3"),
        (manifest("a.json", "[" * 100_000), "auto", "line 1 is no JSON: maximum recursion"),
        (manifest("a.json", "9" * 5000), "auto", "line 1 is no JSON: Exceeds the limit"),
        (manifest("a.json", {"audio_filepath": "a.wav", "text": ["a", "b"]}), "auto",
         r"line 1: 'text' is \['a', 'b'\], expected a text"),
        (manifest("a.json", {"audio_filepath": "a.wav", "id": {}}), "auto", "'id' is {}"),
        (lambda root: root / ("x" * 300), "auto", "there is no corpus at .* too long"),
        (lambda root: str(root / "a\0b"), "auto", "there is no corpus at .* null"),
        (folder_with("é".encode("latin-1")), "auto", "a.txt is no text in UTF-8"),
        (traversing_librispeech, "auto", "line 1: '../x' is no utterance's name"),
        (spoilt_yodas, "auto", "cannot be unpacked: CRC check failed"),
        (torn_yodas, "auto", "cannot be unpacked: unexpected end"),
        (yodas_without("duration", "\n".join([*(f"{name} 1.0" for name in SEGMENTS), "lost 2.0"])),
         "auto", "is not whole: it lacks 1 of the 3 segments in duration/00000000.txt, such as l"),
        (supervised("text"), "auto", r"line 2: supervisions is \['text'\], expected a list of obj"),
        (cuts(supervisions=5), "auto", "line 2: supervisions is 5"),
        (cuts(supervisions={"text": "a"}), "auto", "line 2: supervisions is {"),
        (supervised({"start": "x"}), "auto", r"line 2, supervisions\[0\]: start is 'x'"),
        (supervised({"start": float("nan")}), "auto", "start is nan"),
        (supervised({}, {"text": ["a"]}), "auto", r"line 2, supervisions\[1\]: 'text' is \['a'\]"),
        (supervised({"speaker": ["a"]}), "auto", "'speaker' is"),
        (with_channels(3), "auto", "channel 1 is not among the file's channels 3"),
        (with_channels(None), "auto", "channel 1 is not among the file's channels None"),
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


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x1c"])
def test_texts_may_hold_any_character(tmp_path, character):
    text = f"one{character}two"
    rows = [{"audio_filepath": f"{i}.wav", "text": text} for i in range(2)]
    raw = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    raw = raw.replace(json.dumps(character)[1:-1], character if character > "\x1f" else "\\u000b")
    (tmp_path / "a.json").write_text(raw, encoding="utf-8-sig")
    expected = text if character > "\x1f" else "one\x0btwo"
    assert [each.text for each in read_corpus(tmp_path / "a.json")] == [expected] * 2


@pytest.mark.parametrize("absent", [None, "", "  "])
def test_names_and_texts_that_say_nothing_are_none(tmp_path, absent):
    row = {"audio_filepath": "a.wav", "id": absent, "text": absent, "speaker": absent}
    (found,) = read_corpus(lines(tmp_path / "a.json", row))
    assert (found.id, found.text, found.speaker) == ("a.wav", None, None)
    (found,) = read_corpus(lines(tmp_path / "a.json", {**row, "id": 7, "text": 5}))
    assert (found.id, found.text) == ("7", "5")


def test_a_manifest_may_begin_with_a_mark_and_quote_its_header(tmp_path):
    text = '\ufeff"ID", "duration", "wav", "spk_id", "wrd"\r\na,1,b.wav,s,"one\n\ntwo"\r\n'
    (tmp_path / "a.csv").write_text(text, newline="")
    (found,) = read_corpus(tmp_path / "a.csv")
    assert (found.id, found.text) == ("a", "one\n\ntwo")
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps({"audio_filepath": "a.wav"}))
    assert read_corpus(tmp_path / "a.json")[0].id == "a.wav"


@pytest.mark.parametrize(("text", "read"), [("\ufeffone  two\n", "one two"), (" \n", None)])
def test_a_transcript_in_a_folder(tmp_path, text, read):
    (found,) = read_corpus(folder_with(text.encode())(tmp_path))
    assert found.text == read


def test_a_supervision_may_begin_before_its_cut(tmp_path):
    spoken = [{"start": 0.1, "text": "there"}, {"start": -0.5, "text": "hello"}, {"text": None}]
    (found,) = read_corpus(lines(tmp_path / "cuts.jsonl", cut(tmp_path, supervisions=spoken)))
    assert (found.text, found.speaker) == ("hello there", None)


@pytest.mark.parametrize("format", ["auto", "folder", "librispeech", "ami", "yodas"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch, format):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        read_corpus(tmp_path, format=format)


def test_two_formats_in_one_folder_need_a_choice(tmp_path):
    make_librispeech(tmp_path)
    make_ami(tmp_path)
    with pytest.raises(DatasetError, match="could be librispeech or ami"):
        read_corpus(tmp_path)
    assert len(read_corpus(tmp_path, format="librispeech")) == 2


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(OptionError, match=f"expected auto or one of {', '.join(FORMATS)}"):
        read_corpus(tmp_path, format="kaldi")
