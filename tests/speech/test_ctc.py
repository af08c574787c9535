"""CTC: decoding against sums over all alignments, and losses."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel.errors import OptionError
from bilevel.problems.speech.recognition import (
    BeamSearch,
    NGramModel,
    Vocabulary,
    estimate_ngrams,
    greedy_decode,
)
from bilevel.problems.speech.recognition.ctc import ctc_loss, frames_needed

AB = Vocabulary(("<blank>", " ", "a", "b"))


def random_log_probs(frames: int, symbols: int, seed: int, scale: float = 1.5) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).standard_normal((frames, symbols))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def all_sums(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """By sequence of symbols: the log probability, summed over all V^T alignments."""
    frames, symbols = log_probs.shape
    sums: dict[tuple[int, ...], float] = defaultdict(lambda: -math.inf)
    for alignment in itertools.product(range(symbols), repeat=frames):
        value = sum(log_probs[frame, symbol] for frame, symbol in enumerate(alignment))
        collapsed = tuple(symbol for symbol, _ in itertools.groupby(alignment) if symbol)
        sums[collapsed] = np.logaddexp(sums[collapsed], value)
    return sums


def exhaustive(vocabulary: Vocabulary, model: NGramModel) -> BeamSearch:
    """A search that keeps every prefix of a few frames."""
    return BeamSearch(
        vocabulary=vocabulary,
        language_model=model,
        alpha=0.7,
        beta=0.4,
        unknown_penalty=1.5,
        width=1000,
        floor=-math.inf,
    )


class TestGreedy:
    def test_repetitions_merge_and_blanks_part(self) -> None:
        rows = torch.tensor([[2, 2, 0, 2, 3, 3, 1], [0, 1, 1, 0, 0, 2, 2]])
        log_probs = torch.nn.functional.one_hot(rows, 4).float().log()
        assert greedy_decode(log_probs, torch.tensor([7, 7])) == [[2, 2, 3, 1], [1, 2]]
        assert greedy_decode(log_probs, torch.tensor([3, 1])) == [[2], []]

    def test_nan_is_refused_inside_an_utterance(self) -> None:
        log_probs = torch.zeros(2, 3, 4)
        log_probs[1, 2, 1] = torch.nan
        assert greedy_decode(log_probs, torch.tensor([3, 2])) == [[], []]
        with pytest.raises(OptionError, match="NaN"):
            greedy_decode(log_probs, torch.tensor([3, 3]))


class TestBeamSearch:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_beam_that_drops_nothing_sums_over_all_alignments(self, seed: int) -> None:
        log_probs = random_log_probs(5, 4, seed)
        sums = all_sums(log_probs)
        found = BeamSearch(vocabulary=AB, width=1000, floor=-math.inf).hypotheses(log_probs)
        assert len(found) == len(sums)
        for hypothesis in found:
            assert hypothesis.ctc == pytest.approx(sums[tuple(hypothesis.tokens)], abs=1e-9)
            assert hypothesis.score == hypothesis.ctc
        assert tuple(found[0].tokens) == max(sums, key=lambda tokens: sums[tokens])

    def test_the_sum_beats_the_best_alignment(self) -> None:
        # a: .4 * .4 + 2 * .4 * .6 = .64; blank alone .36 is the best alignment.
        log_probs = torch.tensor([[[0.6, 0.0, 0.4, 0.0]] * 2]).log()
        assert greedy_decode(log_probs, torch.tensor([2])) == [[]]
        assert BeamSearch(vocabulary=AB)(log_probs, torch.tensor([2])) == [[2]]

    @pytest.mark.parametrize("seed", range(5))
    def test_a_language_model_adds_its_words(self, seed: int) -> None:
        model = estimate_ngrams([["a", "ab"], ["ab", "b", "a"], ["b"]], 2)
        log_probs = random_log_probs(5, 4, seed)
        search = exhaustive(AB, model)
        found = {tuple(each.tokens): each for each in search.hypotheses(log_probs)}
        sums = all_sums(log_probs)
        assert found.keys() == sums.keys()
        for tokens, ctc in sums.items():
            words = AB.decode(tokens).split()
            unknown = sum(word not in ("a", "b", "ab") for word in words)
            prior = 0.7 * math.log(10) * model.score(words) + 0.4 * len(words) - 1.5 * unknown
            assert found[tokens].ctc == pytest.approx(ctc, abs=1e-9)
            assert found[tokens].score == pytest.approx(ctc + prior, abs=1e-6)
        best = search.hypotheses(log_probs)[0]
        assert best.score == max(each.score for each in found.values())

    @pytest.mark.parametrize("seed", range(5))
    def test_every_phone_is_a_word(self, seed: int) -> None:
        phones = Vocabulary(("<blank>", "ah", "b", "zh"), "phones")
        model = estimate_ngrams([["ah", "b", "ah"], ["b", "b", "ah"], ["ah"]], 3)
        log_probs = random_log_probs(5, 4, seed)
        search = exhaustive(phones, model)
        for _ in range(2):  # the second time from the scores kept
            found = {tuple(each.tokens): each for each in search.hypotheses(log_probs)}
            sums = all_sums(log_probs)
            assert found.keys() == sums.keys()
            for tokens, ctc in sums.items():
                words = phones.decode(tokens).split()
                part = 0.7 * math.log(10) * model.score(words) + 0.4 * len(words)
                part -= 1.5 * words.count("zh")
                assert found[tokens].score == pytest.approx(ctc + part, abs=1e-5)

    def test_the_language_model_decides_between_words_that_sound_alike(self) -> None:
        vocabulary = Vocabulary.of_texts(["two to too"])
        model = estimate_ngrams([["two", "to", "two"], ["two", "to"]], 2)
        tokens = [each for word in "two  two" for each in (vocabulary.encode(word)[0], 0)]
        logits = torch.full((1, len(tokens), len(vocabulary)), -6.0)
        logits[0, range(len(tokens)), tokens] = 2.0
        logits[0, 10, 0] = logits[0, 12, 0] = 1.9  # the second w is nearly a blank
        log_probs, lengths = logits.log_softmax(-1), torch.tensor([len(tokens)])
        alone = BeamSearch(vocabulary=vocabulary)
        helped = replace(alone, language_model=model, alpha=1.0)
        assert vocabulary.decode(alone(log_probs, lengths)[0]) == "two  two"
        assert vocabulary.decode(helped(log_probs, lengths)[0]) == "two  to"

    def test_a_narrow_beam_only_loses(self) -> None:
        log_probs = random_log_probs(40, 4, 0)
        scores = [
            BeamSearch(vocabulary=AB, width=width).hypotheses(log_probs)[0].score
            for width in (1, 4, 16, 256)
        ]
        assert scores == sorted(scores)
        assert scores[0] < scores[-1] - 0.5

    def test_lengths_end_the_utterances(self) -> None:
        log_probs = torch.from_numpy(np.stack([random_log_probs(6, 4, s) for s in range(2)]))
        search = BeamSearch(vocabulary=AB)
        both = search(log_probs, torch.tensor([6, 3]))
        assert both[1] == search(log_probs[1:, :3], torch.tensor([3]))[0]
        assert search(log_probs, torch.tensor([6, 0]))[1] == []

    def test_a_tensor_is_searched_as_an_array_is(self) -> None:
        log_probs = random_log_probs(6, 4, 0)
        search = BeamSearch(vocabulary=AB)
        assert search.hypotheses(torch.from_numpy(log_probs)) == search.hypotheses(log_probs)

    def test_symbols_below_the_floor_do_not_extend(self) -> None:
        log_probs = np.log([[0.5, 0.2, 0.299, 0.001]])
        found = BeamSearch(vocabulary=AB, floor=math.log(0.1)).hypotheses(log_probs)
        assert [each.tokens for each in found] == [[], [2], [1]]

    def test_what_it_refuses(self) -> None:
        model = estimate_ngrams([["A", "B"]], 1)
        with pytest.raises(OptionError, match=r"\(A, B, \.\.\.\) can be spelled"):
            BeamSearch(vocabulary=AB, language_model=model)
        phones = Vocabulary(("<blank>", "ah", "b"), "phones")
        with pytest.raises(OptionError, match=r"\(A, B, \.\.\.\) is a phone of the vocabulary"):
            BeamSearch(vocabulary=phones, language_model=model)
        spaceless = Vocabulary(("<blank>", "A", "B"))
        with pytest.raises(OptionError, match="no space"):
            BeamSearch(vocabulary=spaceless, language_model=model)
        with pytest.raises(OptionError, match="width=0"):
            BeamSearch(vocabulary=AB, width=0)
        with pytest.raises(OptionError, match="alpha=nan"):
            BeamSearch(vocabulary=AB, alpha=math.nan)
        with pytest.raises(OptionError, match=r"shape \(5, 3\), expected \[T, 4\]"):
            BeamSearch(vocabulary=AB).hypotheses(random_log_probs(5, 3, 0))
        nothing = random_log_probs(3, 4, 0)
        nothing[1] = -np.inf
        for log_probs, found in ((nothing, "frame 1 is -inf"), (nothing * np.nan, "0 is nan")):
            with pytest.raises(OptionError, match=f"{found}, so no hypothesis"):
                BeamSearch(vocabulary=AB).hypotheses(log_probs)
        for language_model in ("lm.arpa", {"a": 0.5}):
            with pytest.raises(OptionError, match=r"language_model=.*read_arpa\(path\) reads one"):
                BeamSearch(vocabulary=AB, language_model=language_model)
        with pytest.raises(OptionError, match="floor='x'"):
            BeamSearch(vocabulary=AB, floor="x")


class TestLoss:
    def test_is_minus_the_sum_over_all_alignments(self) -> None:
        log_probs = [random_log_probs(5, 4, seed) for seed in range(3)]
        targets = [[2, 2], [1, 3, 2], []]
        losses = ctc_loss(torch.from_numpy(np.stack(log_probs)), [5, 4, 3], targets)
        for row, target, frames, loss in zip(log_probs, targets, (5, 4, 3), losses, strict=True):
            assert loss.item() == pytest.approx(-all_sums(row[:frames])[tuple(target)])

    def test_the_frames_that_a_target_needs(self) -> None:
        assert [frames_needed(each) for each in ([], [1], [1, 2, 1], [1, 1, 2, 2, 2])] == [
            0,
            1,
            3,
            8,
        ]
        log_probs = torch.from_numpy(random_log_probs(3, 4, 0))[None]
        assert math.isfinite(ctc_loss(log_probs, [3], [[1, 1]]).item())
        assert ctc_loss(log_probs[:, :2], [2], [[1, 1]]).item() == math.inf
