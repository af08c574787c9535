"""Language models: scores as kenlm's, malformed files, and an estimator that adds up to one."""

from __future__ import annotations

import errno
import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.speech.recognition import (
    NGramModel,
    estimate_ngrams,
    read_arpa,
    write_arpa,
)

ARPA = r"""A remark before the header.
\data\
ngram 1=8
ngram 2=9
ngram 3=4

\1-grams:
-1.2	<unk>
-99	<s>	-0.4
-0.9	</s>
-0.7	the	-0.3
-0.8	cat	-0.25
-1.0	dog	-0.15
-1.1	sat	-0.2
-1.3	on

\2-grams:
-0.3	<s> the	-0.1
-1.1	<s> dog	0.05
-0.5	the cat	-0.12
-0.6	the dog
-0.4	cat sat	-0.3
-0.7	sat on	-0.22
-0.2	on the
-0.8	sat </s>
-0.9	cat <unk>	-0.06

\3-grams:
-0.15	<s> the cat
-0.25	the cat sat
-0.35	cat sat on
-0.45	the cat <unk>

\end\
"""

# By sentence: kenlm 0.3.0's score with begin and end, begin alone, end alone, neither; perplexity.
KENLM = {
    "the cat sat on the dog": (-3.12, -2.07, -3.87, -2.82, 2.790707396425367),
    "": (-1.3, 0.0, -0.9, 0.0, 19.952620958974432),
    "dog": (-2.1, -1.1, -2.05, -1.0, 11.220183311090416),
    "the cat zebra sat": (-2.86, -2.06, -3.61, -2.81, 3.7325013976394694),
    "zebra zebra": (-3.7, -2.8, -3.3, -2.4, 17.113286799551876),
    "sat cat dog the": (-5.8, -4.6, -5.4, -4.2, 14.45439897708521),
    "on the cat sat on": (-4.12, -3.0, -3.72, -2.6, 4.860339962532221),
    "the the dog sat": (-4.05, -3.25, -4.35, -3.55, 6.456542857467629),
}


def write(folder: Path, text: str = ARPA) -> Path:
    path = folder / "model.arpa"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> NGramModel:
    return read_arpa(write(tmp_path))


class TestScores:
    @pytest.mark.parametrize("sentence", KENLM)
    def test_are_those_of_kenlm(self, model: NGramModel, sentence: str) -> None:
        words = sentence.split()
        found = [
            model.score(words, begin=begin, end=end)
            for begin in (True, False)
            for end in (True, False)
        ]
        assert found == pytest.approx(KENLM[sentence][:4], abs=1e-5)
        assert model.perplexity([words]) == pytest.approx(KENLM[sentence][4], rel=1e-5)

    def test_the_perplexity_of_a_text_weighs_its_sentences_by_their_words(
        self, model: NGramModel
    ) -> None:
        # (-3.12 - 2.1) / (7 + 2) log10
        found = model.perplexity([["the", "cat", "sat", "on", "the", "dog"], ["dog"]])
        assert found == pytest.approx(10 ** (5.22 / 9), rel=1e-5)

    def test_without_sentences_there_is_no_perplexity(self, model: NGramModel) -> None:
        with pytest.raises(DatasetError, match="no sentences"):
            model.perplexity([])

    def test_known_words(self, model: NGramModel) -> None:
        assert "cat" in model
        assert "zebra" not in model
        assert "<unk>" not in model
        assert repr(model) == "NGramModel(order=3, n-grams: 8, 9, 4)"


class TestFiles:
    def test_a_compressed_file_is_recognised_by_its_content(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(gzip.compress(ARPA.encode()))
        assert read_arpa(path).score(["dog"]) == pytest.approx(-2.1)

    @pytest.mark.parametrize("name", ["out.arpa", "out.arpa.gz"])
    def test_written_and_read_again_it_is_the_same(
        self, model: NGramModel, tmp_path: Path, name: str
    ) -> None:
        write_arpa(model, tmp_path / name)
        again = read_arpa(tmp_path / name)
        assert again.words == model.words
        for sentence in KENLM:
            assert again.score(sentence.split()) == model.score(sentence.split())
        assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")

    def test_the_capital_spelling_of_the_unknown_word(self, tmp_path: Path) -> None:
        path = write(tmp_path, ARPA.replace("<unk>", "<UNK>"))
        assert read_arpa(path).score(["zebra"]) == pytest.approx(-0.4 - 1.2 - 0.9)

    def test_without_an_entry_unknown_words_have_the_probability_of_kenlm(
        self, tmp_path: Path
    ) -> None:
        lines = [line for line in ARPA.splitlines() if "<unk>" not in line]
        text = "\n".join(lines).replace("1=8", "1=7").replace("2=9", "2=8").replace("3=4", "3=3")
        assert read_arpa(write(tmp_path, text)).score(["zebra"], end=False) == pytest.approx(-100.4)

    def test_five_grams_back_off_through_unlisted_contexts(self, tmp_path: Path) -> None:
        text = (
            "\\data\\\nngram 1=5\nngram 2=2\nngram 3=1\nngram 4=1\nngram 5=1\n\n\\1-grams:\n"
            "-1 <unk>\n-99 <s> -0.1\n-1.5 </s>\n-0.5 a -0.2\n-0.6 b -0.3\n\n"
            "\\2-grams:\n-0.4 <s> a -0.7\n-0.45 a b -0.8\n\n\\3-grams:\n-0.25 <s> a b -0.11\n\n"
            "\\4-grams:\n-0.2 <s> a b a -0.13\n\n\\5-grams:\n-0.05 <s> a b a b\n\n\\end\\\n"
        )
        model = read_arpa(write(tmp_path, text))
        assert model.order == 5
        assert model.score(["a", "b", "a", "b"], end=False) == pytest.approx(
            -0.4 - 0.25 - 0.2 - 0.05
        )
        # <s> a b a | a: the 4-gram's weight, none for (a b a) and (b a), then (a)'s.
        assert model.score(["a", "b", "a", "a"], end=False) == pytest.approx(
            -0.4 - 0.25 - 0.2 + (-0.13 - 0.2 - 0.5)
        )

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("\\data\\", "data", "no line .data. in the file"),
            ("ngram 2=9", "ngram 3=9", r"line 4: found 'ngram 3=9', expected 'ngram 2=NUMBER'"),
            ("ngram 2=9", "ngram 2=x", "line 4"),
            ("ngram 1=8", "ngram 1=9", r"line 16: the 1-grams end after 8, the header promised 9"),
            ("-0.7\tthe", "zero\tthe", "line 11: the log10 probability is 'zero'"),
            ("-0.7\tthe", "0.7\tthe", "line 11: the log10 probability is '0.7'.*at most 0"),
            ("-0.7\tthe\t-0.3", "-0.7\tthe\tnan", "line 11: the back-off weight is 'nan'"),
            ("-0.6\tthe dog", "-0.6\tthe", r"line 21: 2 fields, expected .* 2 words"),
            ("-0.6\tthe dog", "-0.6\tthe cow", "line 21: the word 'cow' is not among the 1-grams"),
            ("-0.6\tthe dog", "-0.6\tthe cat", "line 21: the 2-gram is out of place.*twice"),
            ("cat sat on", "dog sat on", "line 31: .*first 2 words are not a 2-gram"),
            ("-0.25\tthe cat sat", "-0.25\tthe cat sat\t-1", "line 30: 5 fields"),
            ("\\3-grams:", "\\4-grams:", r"line 28: found .*expected '.3-grams:'"),
            ("\\end\\", "", r"line 34: found the end of the file, expected '.end"),
            ("\\end\\", "\\end\\\n\nmore", "line 36: found 'more' after .end"),
            ("ngram 2=9", "ngram 2=" + "9" * 5000, "line 4: found 'ngram 2=9{52}[.]{3}', expected"),
            (
                "-0.3\t<s>",
                "-inf\t<s>",
                "line 18: the log10 probability is '-inf', expected a finite",
            ),
            ("-99\t<s>\t-0.4", "-99\t<s>\t-1e39", "line 9: the back-off weight is '-1e39'"),
            ("-99\t<s>", "-99\tfoo", "1-grams lack <s>"),
            ("-0.5\tthe cat\t-0.12\n", "\\end\\\n", "line 20: found .*after 2 of 9 2-grams"),
        ],
    )
    def test_a_malformed_line_is_named(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        with pytest.raises(DatasetError, match=message):
            read_arpa(write(tmp_path, ARPA.replace(old, new, 1)))

    def test_a_missing_and_a_damaged_file(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="cannot be read"):
            read_arpa(tmp_path / "none.arpa")
        path = tmp_path / "cut.gz"
        path.write_bytes(gzip.compress(ARPA.encode())[:-30])
        with pytest.raises(DatasetError, match="damaged gzip"):
            read_arpa(path)
        broken = bytearray(gzip.compress(ARPA.encode()))
        broken[-6] ^= 255  # of the checksum
        path.write_bytes(broken)
        with pytest.raises(DatasetError, match="CRC"):
            read_arpa(path)
        path.write_bytes(ARPA.encode("utf-8").replace(b"dog", b"d\xffg"))
        with pytest.raises(DatasetError, match="not UTF-8"):
            read_arpa(path)

    def test_a_mark_of_the_byte_order_is_passed_over(self, tmp_path: Path) -> None:
        path = write(tmp_path, "\ufeff" + ARPA.partition("\n")[2])
        assert read_arpa(path).score(["dog"]) == pytest.approx(-2.1)

    def test_words_before_the_first_one_of_an_empty_level_are_named(self, tmp_path: Path) -> None:
        text = (
            "\\data\\\nngram 1=3\nngram 2=0\nngram 3=1\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 a\n\n"
            "\\2-grams:\n\n\\3-grams:\n-0.1 <s> a </s>\n\n\\end\\\n"
        )
        with pytest.raises(DatasetError, match=r"line 14: .*first 2 words are not a 2-gram"):
            read_arpa(write(tmp_path, text))

    def test_what_cannot_be_written_leaves_the_old_file(
        self, model: NGramModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "model.arpa.gz"
        write_arpa(model, path)
        before = path.read_bytes()

        def full(model: NGramModel) -> Iterator[str]:
            yield "\\data\\"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("bilevel.problems.speech.recognition.arpa._lines", full)
        with pytest.raises(DatasetError, match=r"model.arpa.gz cannot be written: No space left"):
            write_arpa(model, path)
        assert path.read_bytes() == before
        assert {each.name for each in tmp_path.iterdir()} == {"model.arpa", "model.arpa.gz"}
        with pytest.raises(DatasetError, match="cannot be written"):
            write_arpa(model, path / "below.arpa")


TEXT = [
    line.split()
    for line in (
        "the cat sat on the mat",
        "the dog sat on the cat",
        "a dog saw the cat on the mat",
        "a cat saw a dog",
        "on the mat the dog sat",
        "the cat",
        "",
    )
]


class TestEstimation:
    @pytest.mark.parametrize("order", [1, 2, 3, 5])
    def test_the_probabilities_after_any_context_add_up_to_one(self, order: int) -> None:
        model = estimate_ngrams(TEXT, order)
        assert model.order == order
        followers = [word for word in model.words if word != "<s>"]
        histories = [[], ["the"], ["the", "cat"], ["on", "the"], ["mat", "mat"], ["cow", "saw"]]
        for begin in (True, False):
            for history in histories:
                context = model.start if begin else ()
                for word in history:
                    _, context = model.step(context, word)
                total = sum(10 ** model.step(context, word)[0] for word in followers)
                assert total == pytest.approx(1.0, abs=1e-5)

    def test_a_bigram_model_by_hand(self) -> None:
        """Few counts: the discounts are 1/2, 1, 3/2.

        Of "a b", "a", "a b" unigrams count the words before them (a: <s>; b: a; </s>: b, a),
        so D = 1/2, 1/2, 1 and γ = (1/2 + 1/2 + 1) / 4 = 1/2, shared by a, b, </s>, <unk>.
        p(a) = (1 - 1/2) / 4 + 1/8 = 1/4, p(b) = 1/4, p(</s>) = (2 - 1) / 4 + 1/8 = 3/8.
        After a (b twice, </s> once): D = 1, 1/2, γ = 1/2; p(b | a) = (2 - 1) / 3 + 1/8 = 11/24.
        """
        model = estimate_ngrams([["a", "b"], ["a"], ["a", "b"]], 2)

        def p(word: str, *context: str) -> float:
            state: tuple[int, ...] = ()
            for each in context:
                _, state = model.step(state, each)
            return 10 ** model.step(state, word)[0]

        assert p("a") == pytest.approx(1 / 4)
        assert p("</s>") == pytest.approx(3 / 8)
        assert p("never") == pytest.approx(1 / 8)
        assert p("b", "a") == pytest.approx(11 / 24)
        assert p("</s>", "a") == pytest.approx(1 / 6 + 3 / 16)
        assert p("a", "a") == pytest.approx(1 / 8)  # backed off
        # <s> is followed by a three times: D = 3/2, γ = 1/2.
        assert 10 ** model.step(model.start, "a")[0] == pytest.approx(1 / 2 + 1 / 8)

    def test_discounts_follow_from_the_counts_of_counts(self) -> None:
        """Unigrams seen 1, 2, 3, 4 times: 4, 2, 1, 1 of them, and 8 sentence ends.

        Y = 4 / (4 + 2 * 2) = 1/2; D1 = 1 - 2 Y 2/4 = 1/2; D2 = 2 - 3 Y 1/2 = 5/4;
        D3 = 3 - 4 Y 1/1 = 1.
        """
        text = ["o", "p", "q", "r", "s", "s", "t", "t", "u", "u", "u", "v", "v", "v", "v"]
        model = estimate_ngrams([text, [], [], [], [], [], [], []], 1)
        total = 15 + 8
        gamma = (4 * 0.5 + 2 * 1.25 + 3 * 1.0) / total  # u, v and </s> have three and more
        uniform = gamma / 10
        assert 10 ** model.score(["o"], end=False) == pytest.approx(0.5 / total + uniform)
        assert 10 ** model.score(["s"], end=False) == pytest.approx(0.75 / total + uniform)
        assert 10 ** model.score(["v"], end=False) == pytest.approx(3 / total + uniform)
        assert 10 ** model.score([]) == pytest.approx(7 / total + uniform)

    def test_a_longer_context_predicts_its_text_better(self) -> None:
        perplexities = [estimate_ngrams(TEXT, order).perplexity(TEXT) for order in (1, 2, 3)]
        assert perplexities == sorted(perplexities, reverse=True)
        assert perplexities[2] < 0.5 * perplexities[0]

    def test_written_and_read_again_it_is_the_same(self, tmp_path: Path) -> None:
        model = estimate_ngrams(TEXT, 3)
        write_arpa(model, tmp_path / "text.arpa")
        again = read_arpa(tmp_path / "text.arpa")
        for words in [*TEXT, ["the", "cow", "sat"]]:
            assert again.score(words) == model.score(words)
            assert math.isfinite(again.score(words))

    def test_what_it_refuses(self) -> None:
        with pytest.raises(DatasetError, match="no sentences"):
            estimate_ngrams([])
        with pytest.raises(DatasetError, match="'the cat' cannot be part"):
            estimate_ngrams([["the cat"]])
        with pytest.raises(DatasetError, match="'<s>' cannot be part"):
            estimate_ngrams([["<s>", "cat"]])
        with pytest.raises(OptionError, match="order=0"):
            estimate_ngrams(TEXT, 0)
        with pytest.raises(DatasetError, match=r"no sentence has 5 words.* estimate with order=4"):
            estimate_ngrams([["the", "cat"], []], 5)
        assert estimate_ngrams([["the", "cat"], []], 4).order == 4
        for word in ("<UNK>", None, ""):
            with pytest.raises(DatasetError, match="cannot be part"):
                estimate_ngrams([["cat", word]])

    def test_texts_are_no_sequences_of_words(self) -> None:
        model = estimate_ngrams(TEXT)
        for use in (
            lambda: estimate_ngrams("cat"),
            lambda: estimate_ngrams(["the cat"]),
            lambda: model.score("cat"),
            lambda: model.perplexity(["cat"]),
        ):
            with pytest.raises(DatasetError, match=r"is a text, expected its words"):
                use()
        assert model.perplexity([iter(["cat"])]) == model.perplexity([["cat"]])
