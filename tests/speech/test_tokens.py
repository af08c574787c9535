"""Vocabularies: what they hold, how they are written down, and whom their errors name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.data.records import Phone, Utterance
from bilevel.problems.speech.recognition import Vocabulary


def spoken(text: str | None = None, phones: str = "") -> Utterance:
    aligned = tuple(Phone(symbol, i, i + 1) for i, symbol in enumerate(phones.split()))
    return Utterance("u7", Path("u7.wav"), text=text, phones=aligned)


class TestCharacters:
    vocabulary = Vocabulary.of_texts(["bad cab", "a, b"], skipped=",")

    def test_are_sorted_after_the_blank(self) -> None:
        assert self.vocabulary.symbols == ("<blank>", " ", "a", "b", "c", "d")
        assert self.vocabulary.space == 1
        assert len(self.vocabulary) == 6

    @given(st.text(alphabet="abcd "))
    def test_decoding_undoes_encoding(self, text: str) -> None:
        assert self.vocabulary.decode(self.vocabulary.encode(text)) == text

    def test_skipped_ones_and_blanks_leave_nothing(self) -> None:
        assert self.vocabulary.encode("a,b") == [2, 3]
        assert self.vocabulary.decode([2, 0, 3]) == "ab"

    def test_there_is_a_space_even_among_single_words(self) -> None:
        assert Vocabulary.of_texts(["ab"]).space == 1

    def test_an_unknown_one_names_the_utterance(self) -> None:
        assert self.vocabulary.target(spoken("bad")) == [3, 2, 5]
        with pytest.raises(DatasetError, match="utterance 'u7' has the symbol 'e' at position 1"):
            self.vocabulary.target(spoken("bed"))
        with pytest.raises(DatasetError, match="the transcript has the symbol 'B' at position 0"):
            self.vocabulary.encode("Bad")
        with pytest.raises(DatasetError, match="utterance 'u7' has no text"):
            self.vocabulary.target(spoken())

    def test_the_blank_cannot_be_spelled(self) -> None:
        phones = Vocabulary(("<blank>", "a"), "phones")
        with pytest.raises(DatasetError, match="'<blank>'"):
            phones.encode(["a", "<blank>"])


class TestPhones:
    vocabulary = Vocabulary.of_phones([spoken(phones="sil s ah t"), spoken(phones="t")], ["sil"])

    def test_are_those_of_the_alignments(self) -> None:
        assert self.vocabulary.symbols == ("<blank>", "ah", "s", "t")
        assert self.vocabulary.space is None
        assert self.vocabulary.target(spoken(phones="t ah sil s")) == [3, 1, 2]
        assert self.vocabulary.encode("t ah") == self.vocabulary.encode(["t", "ah"]) == [3, 1]
        assert self.vocabulary.decode([3, 1]) == "t ah"
        assert self.vocabulary.words(spoken(phones="t ah sil s")) == ["t", "ah", "s"]

    def test_what_they_refuse(self) -> None:
        with pytest.raises(DatasetError, match="utterance 'u7' has the symbol 'zh' at position 0"):
            self.vocabulary.target(spoken(phones="zh"))
        with pytest.raises(DatasetError, match="utterance 'u7' has no phones"):
            self.vocabulary.target(spoken("text only"))
        with pytest.raises(DatasetError, match="none of the utterances has phones"):
            Vocabulary.of_phones([spoken("text only")])
        with pytest.raises(OptionError, match=r"skipped='sil', expected a list of phones"):
            Vocabulary.of_phones([spoken(phones="sil s")], skipped="sil")


@pytest.mark.parametrize(
    ("symbols", "kind", "message"),
    [
        (("a", "b"), "characters", "expected the blank"),
        ((), "characters", "expected the blank"),
        (("<blank>", "a", "a"), "characters", r"'a' \(index 2\)"),
        (("<blank>", "ab"), "characters", "not a single character"),
        (("<blank>", ""), "phones", "empty"),
        (("<blank>", "a"), "words", "kind='words'"),
        (("<blank>", 1), "phones", "not a string"),
    ],
)
def test_contradictory_symbols_are_refused(
    symbols: tuple[str, ...], kind: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Vocabulary(symbols, kind)
