"""What a language model adds to the score of a prefix, symbol by symbol (shallow fusion)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bilevel.problems.speech.recognition.ngram import END, Context, NGramModel
from bilevel.problems.speech.recognition.tokens import BLANK, Vocabulary

_LN10 = math.log(10.0)


class Scores(Protocol):
    """Scores in nats; a state is what they depend on of the symbols so far."""

    @property
    def start(self) -> Any:
        """The state before the first symbol."""

    def parts(self, state: Any) -> NDArray[np.float64]:
        """[V], what each symbol adds if it comes next."""

    def follow(self, state: Any, token: int) -> Any:
        """The state after a symbol."""

    def end(self, state: Any) -> float:
        """What the sentence's end adds."""


@dataclass(frozen=True)
class NoScores:
    """Without a language model: nothing, for each of so many symbols."""

    size: int

    @property
    def start(self) -> None:
        return None

    def parts(self, state: None) -> NDArray[np.float64]:
        return np.zeros(self.size)

    def follow(self, state: None, token: int) -> None:
        return None

    def end(self, state: None) -> float:
        return 0.0


@dataclass(frozen=True)
class Words:
    """The words of a language model.

    Parameters
    ----------
    model
        Language model.
    alpha, beta, unknown_penalty
        As in :class:`BeamSearch`.
    """

    model: NGramModel
    alpha: float
    beta: float
    unknown_penalty: float

    def word(self, context: Context, word: str) -> tuple[float, Context]:
        """The part of a word after a context, and the context after it."""
        log10, following = self.model.step(context, word)
        part = self.alpha * _LN10 * log10 + self.beta
        return part if word in self.model else part - self.unknown_penalty, following

    def end(self, context: Context) -> float:
        """The part of the sentence's end."""
        return self.alpha * _LN10 * self.model.step(context, END)[0]


@dataclass(frozen=True)
class SpelledScores:
    """Words are spelled, and a space ends them: it adds the word before it.

    A state is the context of complete words, and the letters of the unfinished one.
    """

    words: Words
    vocabulary: Vocabulary

    @property
    def start(self) -> tuple[Context, str]:
        return self.words.model.start, ""

    def parts(self, state: tuple[Context, str]) -> NDArray[np.float64]:
        parts = np.zeros(len(self.vocabulary))
        parts[self.vocabulary.space] = self._complete(state)[0]
        return parts

    def follow(self, state: tuple[Context, str], token: int) -> tuple[Context, str]:
        context, letters = state
        if token == self.vocabulary.space:
            return self._complete(state)[1], ""
        return context, letters + self.vocabulary.symbols[token]

    def end(self, state: tuple[Context, str]) -> float:
        part, context = self._complete(state)
        return part + self.words.end(context)

    def _complete(self, state: tuple[Context, str]) -> tuple[float, Context]:
        context, letters = state
        # Doubled spaces separate no word.
        return self.words.word(context, letters) if letters else (0.0, context)


@dataclass(frozen=True)
class SymbolScores:
    """Every symbol is a word. A state is the context."""

    words: Words
    vocabulary: Vocabulary
    _rows: dict[Context, tuple[NDArray[np.float64], list[Context]]] = field(
        init=False, repr=False, default_factory=dict
    )

    @property
    def start(self) -> Context:
        return self.words.model.start

    def parts(self, state: Context) -> NDArray[np.float64]:
        return self._row(state)[0]

    def follow(self, state: Context, token: int) -> Context:
        return self._row(state)[1][token]

    def end(self, state: Context) -> float:
        return self.words.end(state)

    def _row(self, state: Context) -> tuple[NDArray[np.float64], list[Context]]:
        if state not in self._rows:
            scored = [self.words.word(state, symbol) for symbol in self.vocabulary.symbols]
            parts = np.array([part for part, _ in scored])
            parts[BLANK] = 0.0  # it is no symbol of a sentence
            self._rows[state] = parts, [following for _, following in scored]
        return self._rows[state]
