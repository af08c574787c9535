"""Error rates: counts by hand, intervals, paired differences, and texts in one form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.errors import OptionError, ProblemError
from bilevel.problems.speech.measures import (
    Bootstrap,
    ErrorCounts,
    TextNormaliser,
    character_errors,
    phone_errors,
    word_errors,
)


def counts(errors: list[int], lengths: list[int]) -> ErrorCounts:
    return ErrorCounts(np.array(errors), np.array(lengths))


def edit_distance(first: list[str], second: list[str]) -> int:
    """By the textbook recursion, row after row."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        above, row = row, [i]
        for j, right in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


words = st.lists(st.sampled_from("abc"), max_size=6)


class TestCounts:
    def test_substitutions_deletions_insertions(self) -> None:
        references = ["the cat sat", "the cat sat", "the cat sat", "the cat sat on"]
        hypotheses = ["the dog sat", "cat", "oh the cat sat", "a dog"]
        found = word_errors(references, hypotheses)
        assert found.errors.tolist() == [1, 2, 1, 4]
        assert found.lengths.tolist() == [3, 3, 3, 4]
        rate = found.rate()
        assert (rate.value, rate.errors, rate.length) == (8 / 13, 8, 13)

    @given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
    def test_are_the_edit_distance(self, pairs: list[tuple[list[str], list[str]]]) -> None:
        references = [" ".join(reference) for reference, _ in pairs]
        hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
        found = word_errors(references, hypotheses)
        assert found.errors.tolist() == [edit_distance(*pair) for pair in pairs]
        assert found.lengths.tolist() == [len(reference) for reference, _ in pairs]

    def test_what_is_recognised_in_silence_is_an_error_each(self) -> None:
        found = word_errors(["", "a b", "  "], ["one two", "", ""])
        assert found.errors.tolist() == [2, 2, 0]
        assert found.lengths.tolist() == [0, 2, 0]
        assert found.rate().value == 2.0

    def test_characters_count_single_spaces(self) -> None:
        found = character_errors(["a  cat", "ab", ""], ["a cot", "a b", "abc"])
        assert found.errors.tolist() == [1, 1, 3]
        assert found.lengths.tolist() == [5, 2, 0]

    def test_phones_are_whole_symbols(self) -> None:
        found = phone_errors([["ay", "s"], "b ah d"], [["a", "s"], ("b", "ah", "t")])
        assert found.errors.tolist() == [1, 1]
        assert found.lengths.tolist() == [2, 3]

    def test_what_it_refuses(self) -> None:
        with pytest.raises(ProblemError, match="2 references and 1 hypotheses"):
            word_errors(["a", "b"], ["a"])
        with pytest.raises(ProblemError, match="a single text"):
            word_errors("a b", "a b")
        with pytest.raises(ProblemError, match="a single text"):
            phone_errors("a b", "a b")
        with pytest.raises(ProblemError, match="utterance 1 has the text None"):
            word_errors(["a", "b"], ["a", None])
        with pytest.raises(ProblemError, match="2 units of total length 0"):
            word_errors(["", ""], ["a", ""]).rate()


class TestIntervals:
    def test_are_those_of_a_normal_distribution_for_many_utterances(self) -> None:
        generator = np.random.default_rng(0)
        lengths = np.full(2000, 10)
        errors = generator.binomial(10, 0.2, size=2000)
        rate = ErrorCounts(errors, lengths).rate(Bootstrap(resamples=4000))
        width = 1.96 * errors.std() / 10 / np.sqrt(2000)
        assert rate.low == pytest.approx(rate.value - width, rel=0.005)
        assert rate.high == pytest.approx(rate.value + width, rel=0.005)
        narrower = ErrorCounts(errors, lengths).rate(Bootstrap(resamples=4000, level=0.5))
        assert narrower.high - narrower.low == pytest.approx(2 * 0.6745 * width / 1.96, rel=0.08)

    def test_a_seed_repeats_itself(self) -> None:
        found = counts([0, 1, 2, 5, 1], [3, 3, 9, 5, 2])
        assert found.rate(Bootstrap(seed=1)) == found.rate(Bootstrap(seed=1))
        many = [found.rate(Bootstrap(seed=seed, resamples=50)).high for seed in range(5)]
        assert len(set(many)) > 1

    def test_equal_utterances_leave_nothing_to_chance(self) -> None:
        rate = counts([1, 1, 1], [4, 4, 4]).rate()
        assert (rate.low, rate.value, rate.high) == (0.25, 0.25, 0.25)
        assert str(rate) == "25.00 % [25.00, 25.00] (3 errors, 12 symbols)"

    def test_draws_do_not_depend_on_how_they_are_cut_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = counts([0, 1, 2, 5, 1], [3, 3, 9, 5, 2])
        whole = found.rate()
        monkeypatch.setattr("bilevel.problems.speech.measures.bootstrap._CHUNK", 35)
        assert found.rate() == whole

    def test_utterances_of_a_speaker_pooled_widen_the_interval(self) -> None:
        generator = np.random.default_rng(0)
        hard = np.repeat(generator.uniform(0, 0.6, size=12), 40)
        found = ErrorCounts(generator.binomial(10, hard), np.full(480, 10))
        pooled = found.pooled([f"speaker {i // 40}" for i in range(480)])
        assert len(pooled.errors) == 12
        assert pooled.rate().value == found.rate().value
        widths = [each.rate().high - each.rate().low for each in (found, pooled)]
        assert widths[1] > 2 * widths[0]
        unknown = found.pooled(["speaker 0"] * 40 + [None] * 440)
        assert len(unknown.errors) == 441
        with pytest.raises(ProblemError, match="3 groups of 480"):
            found.pooled(["a", "b", "c"])

    def test_options(self) -> None:
        for level in (95, "95 %"):
            with pytest.raises(OptionError, match=f"level={level!r}"):
                Bootstrap(level=level)
        with pytest.raises(OptionError, match="resamples=0"):
            Bootstrap(resamples=0)


class TestDifferences:
    def test_are_paired(self) -> None:
        """The first system always makes one error less: nothing is left to chance."""
        generator = np.random.default_rng(0)
        errors = generator.integers(1, 10, size=50)
        second = ErrorCounts(errors, np.full(50, 10))
        first = ErrorCounts(errors - 1, np.full(50, 10))
        found = first.minus(second)
        assert found.value == pytest.approx(-0.1)
        assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
        assert found.share_better == 1.0
        assert second.minus(first).share_better == 0.0
        assert first.rate().high > second.rate().low  # unpaired, the intervals overlap

    def test_a_system_equals_itself(self) -> None:
        found = counts([1, 2, 3], [5, 5, 5])
        same = found.minus(found)
        assert (same.value, same.low, same.high, same.share_better) == (0.0, 0.0, 0.0, 0.5)

    def test_other_references_are_refused(self) -> None:
        with pytest.raises(ProblemError, match="other references"):
            counts([1, 2], [5, 5]).minus(counts([1, 2], [5, 6]))


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("  Hello,   WORLD! ", "hello world"),
            ("It’s the dogs' 'best' day", "it's the dogs best day"),
            ("well-known — [laughter] <unk> uh-huh", "well known uh huh"),
            ("café no_name 3.5", "café no name 3 5"),
            ("ﬁne", "fine"),
            ("क्या हिन्दी, है?", "क्या हिन्दी है"),  # vowels that are marks
            ("auf\u200clage co\u00adop", "auflage coop"),
        ],
    )
    def test_of_words_only(self, text: str, expected: str) -> None:
        assert TextNormaliser()(text) == expected

    def test_every_part_is_a_choice(self) -> None:
        text = "Uh, the [noise] DOG."
        assert TextNormaliser(case=True)(text) == "Uh the DOG"
        assert TextNormaliser(punctuation=True)(text) == "uh, the dog."
        assert TextNormaliser(marks=True)(text) == "uh the noise dog"
        assert TextNormaliser(dropped=frozenset({"uh"}))(text) == "the dog"
        with pytest.raises(OptionError, match="dropped='uh', expected a set"):
            TextNormaliser(dropped="uh")

    def test_is_applied_to_both_sides(self) -> None:
        found = word_errors(["The dog."], ["the DOG"], TextNormaliser())
        assert found.errors.tolist() == [0]
        assert word_errors(["The dog."], ["the DOG"]).errors.tolist() == [2]
