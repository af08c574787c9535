"""What frames and codes say about phones: exact on cases made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bilevel.errors import DatasetError, ProblemError
from bilevel.problems.speech.data.records import Phone
from bilevel.problems.speech.measures import (
    RidgeFit,
    code_usage,
    contingency,
    frame_phones,
    majority_accuracy,
    phone_index,
    phone_information,
    probe_layers,
)

PHONES = (Phone("s", 0.0, 0.1), Phone("ah", 0.1, 0.16), Phone("t", 0.2, 0.3))
INDEX = {"ah": 0, "s": 1, "t": 2}


class TestFrames:
    def test_take_the_phone_in_their_middle(self) -> None:
        # Middles .0275, .0675, .1075, .1475, .1875 (between phones), .2275, .2675, .3075 (after).
        found = frame_phones(PHONES, 8, INDEX)
        assert found.tolist() == [1, 1, 0, 0, -1, 2, 2, -1]

    def test_unknown_phones_and_none(self) -> None:
        assert frame_phones(PHONES, 8, {"t": 7}).tolist() == [-1] * 5 + [7, 7, -1]
        assert frame_phones((), 3, INDEX).tolist() == [-1, -1, -1]
        assert frame_phones(PHONES, 0, INDEX).tolist() == []

    def test_a_boundary_belongs_to_the_later_phone(self) -> None:
        phones = (Phone("s", 0.0, 0.0675), Phone("t", 0.0675, 0.1))
        assert frame_phones(phones, 3, INDEX).tolist() == [1, 2, -1]

    @pytest.mark.parametrize(
        "phones",
        [
            (Phone("s", 0.0, 0.2), Phone("t", 0.1, 0.3)),
            (Phone("s", 0.2, 0.1), Phone("t", 0.3, 0.4)),
            (Phone("s", 0.2, 0.3), Phone("t", 0.0, 0.1)),
        ],
    )
    def test_phones_out_of_order_are_refused(self, phones: tuple[Phone, ...]) -> None:
        with pytest.raises(DatasetError, match=r"phone 0 \('s'"):
            frame_phones(phones, 3, INDEX)


class TestRidge:
    def test_solves_the_penalised_least_squares_problem(self) -> None:
        generator = torch.Generator().manual_seed(0)
        frames = 3.0 + 2.0 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (200,), generator=generator)
        fit = RidgeFit(6, 4)
        fit.add(frames[:70], labels[:70])
        fit.add(frames[70:], labels[70:])
        probe = fit.solve(0.3)
        x = (frames - frames.mean(0)) / frames.std(0, correction=0)
        y = torch.nn.functional.one_hot(labels, 4).double()
        # Ridge regression as plain least squares with rows appended.
        rows = torch.cat([x, math.sqrt(0.3 * 200) * torch.eye(6)])
        targets = torch.cat([y - y.mean(0), torch.zeros(6, 4)])
        expected = torch.linalg.lstsq(rows, targets).solution
        torch.testing.assert_close(probe.weight, expected)
        torch.testing.assert_close(probe.bias, y.mean(0))
        torch.testing.assert_close(probe(frames), (x @ expected + y.mean(0)).argmax(1))

    def test_unlabelled_frames_and_features_that_never_vary_do_not_count(self) -> None:
        generator = torch.Generator().manual_seed(0)
        frames = torch.randn(60, 3, generator=generator)
        labels = torch.randint(2, (60,), generator=generator)
        plain, padded = RidgeFit(3, 2), RidgeFit(4, 2)
        plain.add(frames, labels)
        padded.add(torch.cat([frames, torch.full((60, 1), 5.0)], 1), labels)
        padded.add(torch.full((9, 4), 99.0), torch.full((9,), -1))
        torch.testing.assert_close(padded.solve().weight[:3], plain.solve().weight)
        assert padded.solve().weight[3].abs().max() == 0.0

    def test_what_it_refuses(self) -> None:
        fit = RidgeFit(3, 2)
        with pytest.raises(ProblemError, match="no labelled frames"):
            fit.solve()
        with pytest.raises(ProblemError, match=r"shape \(4, 2\) with 4 labels, expected \[4, 3\]"):
            fit.add(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
        fit.add(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.long))
        with pytest.raises(ProblemError, match="fit a probe to contain NaN"):
            fit.solve()
        whole = ([torch.randn(4, 3)], torch.tensor([0, 1, 0, 1]))
        broken = ([torch.full((4, 3), torch.nan)], whole[1])
        with pytest.raises(ProblemError, match="score a probe on contain NaN"):
            probe_layers([whole], [broken], classes=2)

    def test_a_layer_that_knows_the_phones_is_told_from_one_that_does_not(self) -> None:
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(5, 8, generator=generator)

        def utterance() -> tuple[list[torch.Tensor], torch.Tensor]:
            labels = torch.randint(5, (50,), generator=generator)
            noise = torch.randn(50, 8, generator=generator)
            return [noise, means[labels] + 0.05 * noise], torch.cat(
                [labels[:45], -torch.ones(5)]
            ).long()

        train, test = ([utterance() for _ in range(20)] for _ in range(2))
        chance, perfect = probe_layers(train, test, classes=5)
        assert perfect.value == 1.0
        assert chance.low < 0.2 < chance.high + 0.05
        assert chance.value == pytest.approx(0.2, abs=0.05)


class TestCodes:
    def test_usage(self) -> None:
        usage = code_usage([0, 0, 1, 1, 2, 2, 3, 3], 16)
        assert usage.perplexity == pytest.approx(4.0)
        assert usage.coverage == 4 / 16
        skewed = code_usage([0, 0, 0, 5], 8)
        assert skewed.perplexity == pytest.approx(
            math.exp(-0.75 * math.log(0.75) + 0.25 * math.log(4))
        )

    def test_table_leaves_out_frames_without_a_phone(self) -> None:
        table = contingency([0, 0, 2, 2, 1], [1, 1, 0, 1, -1], (3, 2))
        assert table.tolist() == [[0, 2], [0, 0], [1, 1]]

    def test_codes_that_are_the_phones_tell_all_and_independent_ones_nothing(self) -> None:
        phones = np.tile(np.arange(4), 500)
        same = phone_information(phones, phones, (4, 4))
        assert same.pnmi == pytest.approx(1.0)
        assert same.corrected == pytest.approx(1.0, abs=0.01)
        independent = phone_information(np.repeat(np.arange(4), 500), phones, (4, 4))
        assert independent.pnmi == pytest.approx(0.0, abs=1e-12)

    def test_by_hand(self) -> None:
        # Code 0 is always phone 0; code 1 is phone 0 or 1 alike. H(phone): 3/4 and 1/4.
        found = phone_information([0, 0, 1, 1] * 100, [0, 0, 0, 1] * 100, (2, 2))
        entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
        assert found.pnmi == pytest.approx((entropy - 0.5 * math.log(2)) / entropy)

    def test_chance_makes_many_codes_look_informative_until_it_is_taken_off(self) -> None:
        generator = np.random.default_rng(0)
        codes, phones = generator.integers(512, size=3000), generator.integers(40, size=3000)
        found = phone_information(codes, phones, (512, 40))
        assert found.pnmi > 0.4
        assert found.corrected == pytest.approx(0.0, abs=0.01)
        again = phone_information(codes, phones, (512, 40))
        assert again == found

    def test_accuracy_of_the_majority_learned_on_other_voices(self) -> None:
        train = contingency([0, 0, 0, 1, 1], [2, 2, 1, 0, 0], (4, 3))
        # Code 0 stands for phone 2, code 1 for phone 0, codes 2 and 3 for phone 0 (a tie: first).
        test = contingency([0, 0, 1, 1, 3, 2], [2, 1, 0, 2, 0, 1], (4, 3))
        assert majority_accuracy(train, test) == pytest.approx(3 / 6)

    def test_what_they_refuse(self) -> None:
        with pytest.raises(ProblemError, match="between 0 and 4, expected indices from 0 to 3"):
            code_usage([0, 4], 4)
        with pytest.raises(ProblemError, match="no frames"):
            code_usage(np.array([], dtype=int), 4)
        with pytest.raises(ProblemError, match="type float64"):
            code_usage([0.5], 4)
        with pytest.raises(ProblemError, match="one of each a frame"):
            contingency([0, 1], [0], (2, 2))
        with pytest.raises(ProblemError, match="a single phone"):
            phone_information([0, 1], [1, 1], (2, 2))
        with pytest.raises(ProblemError, match="expected frames in both"):
            majority_accuracy(np.zeros((2, 2), int), np.ones((2, 2), int))


def test_phones_are_numbered_alphabetically() -> None:
    class Aligned:
        id, text = "u", None
        phones = (Phone("t", 0, 1), Phone("ah", 1, 2), Phone("t", 2, 3))

    assert phone_index([Aligned()]) == {"ah": 0, "t": 1}
