"""CTC prefix beam search, with a language model over words or phones where one is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bilevel.errors import OptionError
from bilevel.options import check_count
from bilevel.problems.speech.recognition.fusion import Fusion
from bilevel.problems.speech.recognition.ngram import BEGIN, END, UNKNOWN, NGramModel
from bilevel.problems.speech.recognition.prefixes import Prefixes
from bilevel.problems.speech.recognition.tokens import BLANK, Vocabulary


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of symbols and what speaks for it.

    Attributes
    ----------
    tokens
        Indices into the vocabulary.
    score
        What the search maximises: ``ctc`` and the language model's part.
    ctc
        Natural logarithm of the probability, summed over the alignments that the beam kept.
    """

    tokens: list[int]
    score: float
    ctc: float


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    r"""Prefix beam search (Hannun et al. 2014, arXiv:1408.2873).

    Searches the symbols y that maximise

    .. math::
        \ln p_{\mathrm{CTC}}(y \mid x) + \alpha \ln p_{\mathrm{LM}}(\text{words of } y)
        + \beta\, |\text{words of } y|

    where the first term adds up all alignments that collapse to y. Of characters, a word is scored
    when the space after it is, and the last word, with the sentence's end, at the end. Of phones,
    each one is a word. A beam as wide as there are prefixes is exact.

    Parameters
    ----------
    vocabulary
        Phones, or characters, with a space if there is a language model.
    language_model
        Over words, or phones; from :func:`read_arpa` or :func:`estimate_ngrams`.
    width
        Prefixes kept after each frame.
    alpha, beta
        Weight of the language model, and bonus of a word. Choose both on validation data.
    unknown_penalty
        Subtracted for a word that the language model does not know.
    floor
        Symbols whose log probability in a frame is below this are not considered there; the most
        probable one always is.
    """

    vocabulary: Vocabulary
    language_model: NGramModel | None = None
    width: int = 50
    alpha: float = 0.5
    beta: float = 1.0
    unknown_penalty: float = 10.0
    floor: float = -12.0

    def __post_init__(self) -> None:
        check_count("width", self.width)
        for name in ("alpha", "beta", "unknown_penalty"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value)):
                raise OptionError(f"{name}={value!r}, expected a finite number")
        if not (isinstance(self.floor, Real) and self.floor <= 0):
            raise OptionError(f"floor={self.floor!r}, expected a log probability, at most 0")
        if isinstance(self.language_model, NGramModel):
            _require_words(self.language_model, self.vocabulary)
        elif self.language_model is not None:
            raise OptionError(
                f"language_model={self.language_model!r}, expected a model: "
                "read_arpa(path) reads one, estimate_ngrams(sentences) makes one"
            )

    @cached_property
    def fusion(self) -> Fusion:
        """What the language model says."""
        return Fusion(
            self.vocabulary, self.language_model, self.alpha, self.beta, self.unknown_penalty
        )

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
        """The best symbols of each utterance, from log probabilities [B, T, V] and [B] lengths."""
        rows = log_probs.detach().cpu()
        counts = lengths.tolist()
        return [
            self.hypotheses(row[:count])[0].tokens for row, count in zip(rows, counts, strict=True)
        ]

    def hypotheses(self, log_probs: NDArray[np.floating] | Tensor) -> list[Hypothesis]:
        """All hypotheses of one utterance that the beam kept, the best first.

        Parameters
        ----------
        log_probs
            [T, V] natural logarithms of the symbols' probabilities.

        Raises
        ------
        OptionError
            They have another shape, or a frame whose largest one is not finite.
        """
        if isinstance(log_probs, Tensor):
            log_probs = log_probs.detach().double().cpu().numpy()
        if log_probs.ndim != 2 or log_probs.shape[1] != len(self.vocabulary):
            raise OptionError(
                f"log probabilities of shape {log_probs.shape}, expected [T, "
                f"{len(self.vocabulary)}]: one column for each symbol of the vocabulary"
            )
        largest = log_probs.max(axis=1)
        if not np.isfinite(largest).all():
            frame = int(np.argmin(np.isfinite(largest)))
            raise OptionError(
                f"the largest log probability of frame {frame} is {largest[frame]}, so no "
                "hypothesis is best"
            )
        beam = _Beam(self)
        for frame in log_probs.astype(np.float64):
            beam.advance(frame)
        return beam.finished()


def _require_words(model: NGramModel, vocabulary: Vocabulary) -> None:
    """Refuse a model whose every word would be unknown, such as one in capitals."""
    symbols = set(vocabulary.symbols)
    words = [word for word in model.words if word not in (BEGIN, END, UNKNOWN)]
    shown = ", ".join(words[:3])
    if vocabulary.kind == "phones":
        if symbols.isdisjoint(words):
            raise OptionError(
                f"no word of the language model ({shown}, ...) is a phone of the vocabulary "
                f"({', '.join(vocabulary.symbols[1:4])}, ...): give a model over these phones"
            )
    elif vocabulary.space is None:
        raise OptionError(
            "a language model scores words, which this vocabulary cannot separate: it has no space"
        )
    elif not any(symbols.issuperset(word) for word in words):
        raise OptionError(
            f"no word of the language model ({shown}, ...) can be spelled with the vocabulary: "
            "bring both to the same case, and to the same characters"
        )


class _Beam:
    """The prefixes kept, and the log probabilities of their alignments by the last frame's symbol.

    ``blank``: of those that end in a blank; ``other``: of those that end in the prefix's symbol.
    """

    def __init__(self, search: BeamSearch) -> None:
        self.search = search
        self.prefixes = Prefixes(search.fusion)
        self.kept = np.zeros(1, dtype=np.int64)
        self.blank = np.zeros(1)
        self.other = np.full(1, -np.inf)

    def advance(self, frame: NDArray[np.float64]) -> None:
        """One frame: every prefix stays, or grows by a symbol."""
        last = np.array([self.prefixes.last[prefix] for prefix in self.kept])
        total = np.logaddexp(self.blank, self.other)
        blank = total + frame[BLANK]
        other = self.other + frame[last]

        tokens = np.flatnonzero(frame >= min(self.search.floor, frame.max()))
        tokens = tokens[tokens != BLANK]
        # A symbol follows itself only after a blank.
        before = np.where(last[:, None] == tokens, self.blank[:, None], total[:, None])
        grown = before + frame[tokens]
        self._merge(grown, other, last, tokens)

        scores = np.concatenate(
            [np.logaddexp(blank, other) + self._priors(), (grown + self._growth(tokens)).ravel()]
        )
        best = np.argsort(-scores, kind="stable")[: self.search.width]
        best = best[scores[best] > -np.inf]
        stay = best[best < len(self.kept)]
        rows, columns = np.divmod(
            best[best >= len(self.kept)] - len(self.kept), max(len(tokens), 1)
        )
        born = [
            self.prefixes.child(int(self.kept[row]), int(tokens[column]))
            for row, column in zip(rows, columns, strict=True)
        ]
        self.blank = np.concatenate([blank[stay], np.full(len(born), -np.inf)])
        self.other = np.concatenate([other[stay], grown[rows, columns]])
        self.kept = np.concatenate([self.kept[stay], np.array(born, dtype=np.int64)])

    def _merge(
        self,
        grown: NDArray[np.float64],
        other: NDArray[np.float64],
        last: NDArray[np.int64],
        tokens: NDArray[np.int64],
    ) -> None:
        """Where a prefix grows into one that is kept already, the two are the same."""
        row = {int(prefix): i for i, prefix in enumerate(self.kept)}
        column = {int(token): i for i, token in enumerate(tokens)}
        for i, prefix in enumerate(self.kept):
            parent = row.get(self.prefixes.parent[prefix])
            token = column.get(int(last[i]))
            if parent is not None and token is not None:
                other[i] = np.logaddexp(other[i], grown[parent, token])
                grown[parent, token] = -np.inf

    def _priors(self) -> NDArray[np.float64]:
        return np.array([self.prefixes.prior[prefix] for prefix in self.kept])

    def _growth(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The language model's part of the score of each grown prefix."""
        parts = np.stack([self.prefixes.parts(int(prefix)) for prefix in self.kept])
        return self._priors()[:, None] + parts[:, tokens]

    def finished(self) -> list[Hypothesis]:
        """The hypotheses at the end of the utterance."""
        ctc = np.logaddexp(self.blank, self.other)
        found = [
            Hypothesis(
                self.prefixes.tokens(int(prefix)),
                float(value) + self.prefixes.ended(int(prefix)),
                float(value),
            )
            for prefix, value in zip(self.kept, ctc, strict=True)
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)
