"""A recogniser: what it hears, and its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from signals import features, inputs, model, options
from torch import Tensor, nn

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech import SpeechEncoder, SpeechInputs, SpeechModel
from bilevel.problems.speech.data import Phone, Utterance
from bilevel.problems.speech.recognition import (
    BeamSearch,
    Recogniser,
    Transcript,
    Vocabulary,
    transcribe,
)

LETTERS = Vocabulary.of_texts(["a bad cab"], skipped=["-"])
PHONES = Vocabulary(("<blank>", "AH", "B"), "phones")


def recogniser(vocabulary: Vocabulary = LETTERS) -> Recogniser:
    torch.manual_seed(3)
    encoder = dataclasses.replace(options().encoder, dropout=0.3, window=9)
    return Recogniser(SpeechEncoder(encoder), vocabulary, dropout=0.2)


class Played(nn.Module):
    """An encoder whose hidden states are the first features of every fourth frame."""

    width = 3

    def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, ::4, :3], counts // 4


def played(symbols: list[list[int]], vocabulary: Vocabulary) -> tuple[Recogniser, Tensor, Tensor]:
    """A recogniser that copies its features, and features that spell one symbol a frame."""
    heard = Recogniser(Played(), vocabulary, dropout=0.5)
    nn.init.eye_(heard.head.weight)
    nn.init.zeros_(heard.head.bias)
    x = torch.zeros(len(symbols), 4 * max(map(len, symbols)), 80)
    for row, indices in enumerate(symbols):
        x[row, torch.arange(len(indices)) * 4, indices] = 20.0
    return heard, x, torch.tensor([4 * len(each) for each in symbols])


class TestRecognition:
    def test_spells_phones_and_characters(self) -> None:
        heard, x, counts = played([[1, 1, 0, 1, 2], [2, 0]], PHONES)
        assert heard.recognise(x, counts) == ["AH AH B", "B"]
        letters = Vocabulary(("<blank>", " ", "a"))
        heard, x, counts = played([[2, 1, 2, 2, 0, 2]], letters)
        assert heard.recognise(x, counts) == ["a aa"]
        assert heard.recognise(x, counts, BeamSearch(vocabulary=letters)) == ["a aa"]

    def test_drops_nothing_and_keeps_the_mode(self) -> None:
        heard, x, counts = played([[1, 0] * 100], PHONES)
        assert heard.training
        assert heard.recognise(x, counts) == [" ".join(["AH"] * 100)]
        assert heard.training
        heard.eval().recognise(x, counts)
        assert not heard.training

    def test_transcripts_pair_what_was_said_with_what_was_heard(self) -> None:
        heard, x, counts = played([[1, 2], [2, 0]], PHONES)

        aligned = tuple(Phone("AH", i, i + 1) for i in (0, 1)), (Phone("B", 0, 1),)
        said = [
            Utterance(name, Path("x.wav"), phones=phones, speaker=speaker)
            for name, phones, speaker in zip(
                ("first", "second"), aligned, ("Ann", None), strict=True
            )
        ]
        batch = SpeechInputs.of(x, counts, [0, 1], said)
        assert transcribe(heard, [batch]) == [
            Transcript("first", "AH AH", "AH B", "Ann"),
            Transcript("second", "B", "B"),
        ]

    def test_a_search_over_other_symbols_is_refused(self) -> None:
        heard, x, counts = played([[1, 2]], PHONES)
        other = Vocabulary(("<blank>", "AH", "ZH"), "phones")
        with pytest.raises(OptionError, match="vocabulary of 3 symbols is not the recogniser's"):
            heard.recognise(x, counts, BeamSearch(vocabulary=other))

    def test_weights_that_are_not_finite_are_not_heard(self) -> None:
        heard, x, counts = played([[1, 2]], PHONES)
        nn.init.constant_(heard.head.bias, torch.nan)
        with pytest.raises(OptionError, match="NaN"):
            heard.recognise(x, counts)

    @pytest.mark.parametrize("dropout", [5, -0.1, float("nan"), "x"])
    def test_dropout_is_a_share(self, dropout: float) -> None:
        with pytest.raises(OptionError, match="dropout="):
            Recogniser(Played(), PHONES, dropout)


class TestFiles:
    def test_it_comes_back_whole(self, tmp_path: Path) -> None:
        saved = recogniser()
        saved.save_pretrained(tmp_path / "made" / "here")
        loaded = Recogniser.from_pretrained(tmp_path / "made" / "here")
        assert loaded.vocabulary == saved.vocabulary
        assert isinstance(loaded.encoder, SpeechEncoder)
        assert isinstance(saved.encoder, SpeechEncoder)
        assert loaded.encoder.options == saved.encoder.options
        assert loaded.dropout.p == 0.2
        assert not loaded.training
        batch = inputs(counts=[96, 80, 61, 40])
        expected, lengths = saved.eval()(batch.features, batch.frame_counts)
        found, found_lengths = loaded(batch.features, batch.frame_counts)
        assert torch.equal(found, expected)
        assert torch.equal(found_lengths, lengths)

    def test_the_files_can_be_read_without_the_library(self, tmp_path: Path) -> None:
        recogniser(PHONES).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["model"] == "bilevel.problems.speech.recogniser"
        assert config["encoder"]["window"] == 9
        assert config["vocabulary"]["symbols"][1:] == ["AH", "B"]

    def test_an_encoder_of_unknown_options_is_not_saved(self, tmp_path: Path) -> None:
        heard, _, _ = played([[1]], PHONES)
        with pytest.raises(OptionError, match="the encoder is a Played"):
            heard.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_other_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no model at"):
            Recogniser.from_pretrained(tmp_path)
        model().save_pretrained(tmp_path / "pretrained")
        with pytest.raises(
            DatasetError, match=r"kind 'bilevel.problems.speech', expected '.*recog"
        ):
            Recogniser.from_pretrained(tmp_path / "pretrained")
        recogniser().save_pretrained(tmp_path)
        with pytest.raises(DatasetError, match=r"kind '.*recogniser', expected"):
            SpeechModel.from_pretrained(tmp_path)
        with pytest.raises(DatasetError, match="no model at"):
            Recogniser.from_pretrained(tmp_path / "model.safetensors")
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").mkdir()
        with pytest.raises(DatasetError, match="no configuration of a model"):
            Recogniser.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"encoder": {"layers": 3}}, "describes no model: TypeError"),
            ({"encoder": {"layers": 3, "width": 30, "attention_heads": 4}}, "width=30"),
            ({"dropout": "much"}, "dropout='much'"),
            ({"dropout": 5}, "dropout=5"),
            ({"vocabulary": {"kind": "phones", "symbols": ["<blank>"]}}, r"KeyError\('skipped'\)"),
            ({"vocabulary": dataclasses.asdict(PHONES) | {"skipped": []}}, r"size mismatch for"),
            ({"vocabulary": {"kind": "phones", "symbols": ["a"], "skipped": []}}, "the blank"),
            ({"model": None}, "kind None"),
        ],
    )
    def test_a_changed_configuration_is_refused(
        self, change: dict[str, object], message: str, tmp_path: Path
    ) -> None:
        recogniser().save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(DatasetError, match=message):
            Recogniser.from_pretrained(tmp_path)

    def test_broken_weights_and_nested_configurations_are_refused(self, tmp_path: Path) -> None:
        broken = recogniser()
        with torch.no_grad():
            broken.head.weight[0, 0] = torch.inf
        broken.save_pretrained(tmp_path)
        with pytest.raises(DatasetError, match=r"safetensors: head.weight holds NaN or infinite"):
            Recogniser.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text("[" * 100_000)
        with pytest.raises(DatasetError, match="RecursionError"):
            Recogniser.from_pretrained(tmp_path)

    def test_what_cannot_be_written_leaves_what_was_there(self, tmp_path: Path) -> None:
        recogniser().save_pretrained(tmp_path)
        before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
        unwritable = recogniser(Vocabulary(("<blank>", "\ud800")))
        with pytest.raises(UnicodeEncodeError):
            unwritable.save_pretrained(tmp_path)
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
        with pytest.raises(DatasetError, match=r"config.json/model.safetensors cannot be written"):
            recogniser().save_pretrained(tmp_path / "config.json")


def test_log_probabilities_stay_in_single_precision_under_autocast() -> None:
    heard = recogniser().eval()
    x = features(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, lengths = heard(x, torch.tensor([40, 22]))
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(2, 10), atol=1e-5)
    assert lengths.tolist() == [10, 5]
