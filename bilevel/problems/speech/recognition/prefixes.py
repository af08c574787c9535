"""The prefixes that a beam search meets, and what a language model says of their words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bilevel.problems.speech.recognition.ngram import END, Context, NGramModel
from bilevel.problems.speech.recognition.tokens import BLANK, Vocabulary

_LN10 = math.log(10.0)


@dataclass(frozen=True)
class WordScores:
    """What words add to the score of a prefix, in nats.

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


class Prefixes:
    """A tree of symbols; nodes have numbers, and 0 is the empty prefix.

    Attributes
    ----------
    parent, last
        By prefix: the one without its last symbol, and that symbol.
    prior
        By prefix: what its complete words add to its score.
    """

    def __init__(self, vocabulary: Vocabulary, scores: WordScores | None) -> None:
        self.vocabulary = vocabulary
        self.scores = scores
        self.parent = [-1]
        self.last = [BLANK]
        self.prior = [0.0]
        # Complete words, as the language model sees them; letters of the unfinished one.
        self._context: list[Context] = [scores.model.start if scores is not None else ()]
        self._word = [""]
        self._children: dict[tuple[int, int], int] = {}
        self._completed: dict[int, tuple[float, Context]] = {}

    def child(self, prefix: int, token: int) -> int:
        """The prefix that is one symbol longer."""
        key = (prefix, token)
        if key not in self._children:
            self._children[key] = len(self.parent)
            self.parent.append(prefix)
            self.last.append(token)
            ends = token == self.vocabulary.space
            part, context = self._complete(prefix) if ends else (0.0, self._context[prefix])
            self.prior.append(self.prior[prefix] + part)
            self._context.append(context)
            self._word.append("" if ends else self._word[prefix] + self.vocabulary.symbols[token])
        return self._children[key]

    def completed(self, prefix: int) -> float:
        """What the unfinished word adds when a space ends it."""
        return self._complete(prefix)[0]

    def ended(self, prefix: int) -> float:
        """What all words add, if the sentence ends here."""
        if self.scores is None:
            return 0.0
        part, context = self._complete(prefix)
        return self.prior[prefix] + part + self.scores.end(context)

    def tokens(self, prefix: int) -> list[int]:
        """The symbols of a prefix."""
        found = []
        while prefix > 0:
            found.append(self.last[prefix])
            prefix = self.parent[prefix]
        return found[::-1]

    def _complete(self, prefix: int) -> tuple[float, Context]:
        if self.scores is None or not self._word[prefix]:  # doubled spaces separate no word
            return 0.0, self._context[prefix]
        if prefix not in self._completed:
            self._completed[prefix] = self.scores.word(self._context[prefix], self._word[prefix])
        return self._completed[prefix]
