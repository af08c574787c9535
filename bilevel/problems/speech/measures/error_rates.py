"""Word, character and phone error rates with bootstrap intervals, and differences of systems."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel.errors import ProblemError
from bilevel.extras import require
from bilevel.problems.speech.measures.bootstrap import Bootstrap, Estimate

_SINGLE = "a single text was given, expected a list with one an utterance"


@dataclass(frozen=True)
class ErrorRate(Estimate):
    """Errors over symbols of the references.

    Attributes
    ----------
    value, low, high
        The rate, which insertions can bring above 1, and its interval.
    errors
        Substitutions, deletions and insertions.
    length
        Symbols of the references.
    """

    errors: int
    length: int

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}] "
            f"({self.errors} errors, {self.length} symbols)"
        )


@dataclass(frozen=True)
class Difference(Estimate):
    """The error rate of a first system minus that of a second on the same utterances.

    Attributes
    ----------
    value, low, high
        The difference, negative where the first system is better, and its interval.
    share_better
        Share of the bootstrap's draws in which the first system makes fewer errors, half of those
        with as many included.
    """

    share_better: float


@dataclass(frozen=True)
class ErrorCounts:
    """Errors and symbols of the reference, by utterance.

    Attributes
    ----------
    errors, lengths
        [n] integers.
    """

    errors: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def pooled(self, groups: Sequence[Hashable]) -> ErrorCounts:
        """Sums over the utterances of a group, such as a speaker: whole groups are then drawn.

        An utterance whose group is ``None`` is one of its own.
        """
        if len(groups) != len(self.errors):
            raise ProblemError(f"{len(groups)} groups of {len(self.errors)} utterances")
        groups = [(row,) if group is None else group for row, group in enumerate(groups)]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        index = [numbers[group] for group in groups]
        sums = [
            np.bincount(index, weights=each, minlength=len(numbers)).astype(np.int64)
            for each in (self.errors, self.lengths)
        ]
        return ErrorCounts(*sums)

    def rate(self, bootstrap: Bootstrap | None = None) -> ErrorRate:
        """The error rate of all utterances together.

        Raises
        ------
        ProblemError
            all references are empty.
        """
        found = (bootstrap or Bootstrap()).ratio(self.errors, self.lengths)
        return ErrorRate(
            found.value, found.low, found.high, int(self.errors.sum()), int(self.lengths.sum())
        )

    def minus(self, other: ErrorCounts, bootstrap: Bootstrap | None = None) -> Difference:
        """This system's error rate minus another's, by a paired bootstrap.

        Raises
        ------
        ProblemError
            the counts are not of the same references.
        """
        if not np.array_equal(self.lengths, other.lengths):
            raise ProblemError(
                f"the two systems were scored on other references ({len(self.lengths)} of "
                f"{self.lengths.sum()} symbols, {len(other.lengths)} of {other.lengths.sum()}): "
                "a paired comparison needs the same utterances in the same order"
            )
        estimate, draws = (bootstrap or Bootstrap()).difference(
            self.errors, other.errors, self.lengths
        )
        share = np.mean(draws < 0) + 0.5 * np.mean(draws == 0)
        return Difference(estimate.value, estimate.low, estimate.high, float(share))


def word_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalise: Callable[[str], str] | None = None,
) -> ErrorCounts:
    """Errors in words, which blanks separate.

    An empty reference has length 0, and each word of its hypothesis is an error.

    Parameters
    ----------
    references, hypotheses
        One text an utterance.
    normalise
        Applied to both, e.g. a :class:`TextNormaliser`.
    """
    references, hypotheses = _paired(references, hypotheses, normalise)
    return _counted("process_words", references, hypotheses, lambda text: len(text.split()))


def character_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalise: Callable[[str], str] | None = None,
) -> ErrorCounts:
    """Errors in characters, a space between words among them; otherwise as :func:`word_errors`."""
    references, hypotheses = _paired(references, hypotheses, normalise)
    return _counted("process_characters", references, hypotheses, len)


def phone_errors(
    references: Sequence[Iterable[str] | str], hypotheses: Sequence[Iterable[str] | str]
) -> ErrorCounts:
    """Errors in phones: sequences of symbols, or texts with blanks between them."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise ProblemError(_SINGLE)
    joined = [
        [each if isinstance(each, str) else " ".join(each) for each in side]
        for side in (references, hypotheses)
    ]
    return word_errors(joined[0], joined[1])


def _paired(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalise: Callable[[str], str] | None,
) -> tuple[list[str], list[str]]:
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise ProblemError(_SINGLE)
    if len(references) != len(hypotheses):
        raise ProblemError(
            f"{len(references)} references and {len(hypotheses)} hypotheses, expected one of each "
            "an utterance"
        )
    for texts in (references, hypotheses):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ProblemError(f"utterance {row} has the text {text!r}, expected a string")
    sides = (
        (references, hypotheses)
        if normalise is None
        else (
            [normalise(each) for each in references],
            [normalise(each) for each in hypotheses],
        )
    )
    single = [[" ".join(each.split()) for each in side] for side in sides]
    return single[0], single[1]


def _counted(
    process: str,
    references: Sequence[str],
    hypotheses: Sequence[str],
    length: Callable[[str], int],
) -> ErrorCounts:
    align = getattr(require("jiwer", "speech"), process)
    # What is recognised where nothing was said is an error; some versions refuse to align it.
    errors = [
        0 if reference else length(text)
        for reference, text in zip(references, hypotheses, strict=True)
    ]
    spoken = [row for row, reference in enumerate(references) if reference]
    if spoken:
        output = align([references[row] for row in spoken], [hypotheses[row] for row in spoken])
        for row, chunks in zip(spoken, output.alignments, strict=True):
            errors[row] = sum(_cost(chunk) for chunk in chunks if chunk.type != "equal")
    return ErrorCounts(
        np.array(errors, dtype=np.int64),
        np.array([length(reference) for reference in references], dtype=np.int64),
    )


def _cost(chunk: Any) -> int:
    """Errors of a stretch of substitutions, deletions or insertions."""
    return int(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    )
