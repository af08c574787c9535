"""What a language model adds to the score of a prefix, symbol by symbol (shallow fusion)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bilevel.problems.speech.recognition.ngram import END, Context, NGramModel
from bilevel.problems.speech.recognition.tokens import BLANK, Vocabulary

_LN10 = math.log(10.0)
#: States whose parts are kept: of phones they come back again and again.
_KEPT = 4096

#: What the score of the next symbol depends on: the context of complete words, and the letters of
#: the unfinished one.
State: TypeAlias = tuple[Context, str]


class Fusion:
    """Scores in nats of the words that symbols spell.

    Of phones, each one is a word; of characters, a space completes the word before it.

    Parameters
    ----------
    vocabulary
        The symbols.
    model
        Language model; none scores nothing.
    alpha, beta, unknown_penalty
        As in :class:`BeamSearch`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: NGramModel | None,
        alpha: float,
        beta: float,
        unknown_penalty: float,
    ) -> None:
        self.symbols = vocabulary.symbols
        self.phones = vocabulary.kind == "phones"
        self.space = vocabulary.space
        self.model = model
        self.alpha = alpha
        self.beta = beta
        self.unknown_penalty = unknown_penalty
        self.parts = lru_cache(maxsize=_KEPT)(self._parts)

    @property
    def start(self) -> State:
        """The state before the first symbol."""
        return () if self.model is None else self.model.start, ""

    def step(self, state: State, token: int) -> tuple[float, State]:
        """What a symbol adds if it comes next, and the state after it."""
        context, letters = state
        if self.model is None:
            return 0.0, state
        if not self.phones and token != self.space:
            return 0.0, (context, letters + self.symbols[token])
        word = self.symbols[token] if self.phones else letters
        if not word:  # doubled spaces separate no word
            return 0.0, state
        part, context = self._word(context, word)
        return part, (context, "")

    def end(self, state: State) -> float:
        """What the sentence's end adds, an unfinished word included."""
        context, letters = state
        if self.model is None:
            return 0.0
        part, context = self._word(context, letters) if letters else (0.0, context)
        return part + self.alpha * _LN10 * self.model.step(context, END)[0]

    def _parts(self, state: State) -> NDArray[np.float64]:
        """[V], what each symbol adds if it comes next."""
        parts = np.zeros(len(self.symbols))
        for token in range(len(parts)):
            if token != BLANK and (self.phones or token == self.space):
                parts[token] = self.step(state, token)[0]
        return parts

    def _word(self, context: Context, word: str) -> tuple[float, Context]:
        assert self.model is not None
        log10, following = self.model.step(context, word)
        part = self.alpha * _LN10 * log10 + self.beta
        return part if word in self.model else part - self.unknown_penalty, following
