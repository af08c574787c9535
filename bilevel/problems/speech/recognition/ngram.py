"""Back-off n-gram language models over words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bilevel.errors import DatasetError

#: Begin and end of a sentence, and every word that the model does not know.
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
#: log10 probability of unknown words under a model that has no entry for them, as in kenlm.
UNKNOWN_LOG10 = -100.0

#: The words before the next one, as indices, the last one last.
Context: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """The n-grams of one length.

    Attributes
    ----------
    keys
        [N] int64, sorted. An n-gram is a child of its first n - 1 words: its key is their position
        among the shorter n-grams, times the number of words, plus the last word's index.
    log10
        [N] float32, log10 probability of the last word after the others.
    backoff
        [N] float32, log10 weight of the shorter context where an n-gram one longer is missing.
    """

    keys: NDArray[np.int64]
    log10: NDArray[np.float32]
    backoff: NDArray[np.float32]

    def find(self, key: int) -> int | None:
        """Position of a key."""
        position = int(np.searchsorted(self.keys, key))
        found = position < len(self.keys) and int(self.keys[position]) == key
        return position if found else None


@dataclass(frozen=True, eq=False)
class NGramModel:
    r"""Probabilities of words after their predecessors, with back-off.

    .. math::
        p(w \mid h) = \begin{cases} p^*(w \mid h) & \text{if } hw \text{ is listed} \\
        b(h)\, p(w \mid h') & \text{otherwise} \end{cases}

    with :math:`h'` the context without its first word, and :math:`b(h) = 1` of an unlisted context.
    All scores are log10, the unit of ARPA files and of kenlm.

    Attributes
    ----------
    words
        The words by index, ``<s>``, ``</s>`` and ``<unk>`` among them.
    levels
        The n-grams of lengths 1, 2, ...
    """

    words: tuple[str, ...]
    levels: tuple[Level, ...]
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {word: i for i, word in enumerate(self.words)})

    def __repr__(self) -> str:
        counts = ", ".join(str(len(level.keys)) for level in self.levels)
        return f"NGramModel(order={self.order}, n-grams: {counts})"

    def __contains__(self, word: object) -> bool:
        """Whether a word is known."""
        return word in self._index and word != UNKNOWN

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.levels)

    @property
    def start(self) -> Context:
        """The context of a sentence's first word."""
        return self._shortened((self._index[BEGIN],))

    def step(self, context: Context, word: str) -> tuple[float, Context]:
        """log10 probability of a word in a context, and the context of the next word."""
        index = self._index.get(word, self._index[UNKNOWN])
        return self._log10(context, index), self._shortened((*context, index))

    def score(self, words: Iterable[str], *, begin: bool = True, end: bool = True) -> float:
        """log10 probability of a sequence of words.

        Parameters
        ----------
        words
            The words, without ``<s>`` and ``</s>``.
        begin, end
            Whether the words begin, and end, a sentence.
        """
        require_words(words)
        context = self.start if begin else ()
        total = 0.0
        for word in (*words, END) if end else words:
            value, context = self.step(context, word)
            total += value
        return total

    def perplexity(self, sentences: Iterable[Iterable[str]]) -> float:
        """Inverse geometric mean of the words' probabilities, each sentence's end a word too."""
        total, count = 0.0, 0
        for sentence in sentences:
            require_words(sentence)
            words = list(sentence)
            total += self.score(words)
            count += len(words) + 1
        if count == 0:
            raise DatasetError("the perplexity of no sentences is undefined; give at least one")
        return float(10.0 ** (-total / count))

    def _log10(self, context: Context, word: int) -> float:
        total = 0.0
        for start in range(len(context) + 1):
            shorter = context[start:]
            node = self._node(shorter)
            if node is None:
                continue
            level = self.levels[len(shorter)]
            child = level.find(node * len(self.words) + word)
            if child is not None:
                return total + float(level.log10[child])
            total += float(self.levels[len(shorter) - 1].backoff[node])
        raise AssertionError("every word has a unigram")

    def _node(self, context: Context) -> int | None:
        """Position of a context among the n-grams of its length."""
        node = 0
        for level, word in zip(self.levels, context, strict=False):
            child = level.find(node * len(self.words) + word)
            if child is None:
                return None
            node = child
        return node

    def _shortened(self, context: Context) -> Context:
        return context[-(self.order - 1) :] if self.order > 1 else ()


def require_words(sentence: Iterable[str]) -> None:
    """Refuse a text in the place of its words: its letters would be taken for them."""
    if isinstance(sentence, str):
        raise DatasetError(f"the sentence {sentence!r} is a text, expected its words: .split() it")


class NGramRowError(Exception):
    """A row of the n-grams of one length is out of place; ``row`` counts from 0."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def build_level(
    shorter: Sequence[Level],
    grams: NDArray[np.int64],
    log10: NDArray[np.float32],
    backoff: NDArray[np.float32],
    words: int,
) -> Level:
    """Sort n-grams [N, n] of word indices into a level, after those of all shorter lengths.

    Raises
    ------
    NGramRowError
        an n-gram stands twice, or its first n - 1 words are not an n-gram.
    """
    nodes = np.zeros(len(grams), dtype=np.int64)
    for column, level in enumerate(shorter):
        keys = nodes * words + grams[:, column]
        nodes = np.searchsorted(level.keys, keys)
        missing = np.append(level.keys, -1)[nodes] != keys
        if missing.any():
            raise NGramRowError(
                int(missing.argmax()), f"its first {column + 1} words are not a {column + 1}-gram"
            )
    keys = nodes * words + grams[:, -1]
    order = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(repeated):
        raise NGramRowError(int(order[repeated[0] + 1]), "it stands twice")
    return Level(keys[order], log10[order], backoff[order])


def listed(model: NGramModel, length: int) -> NDArray[np.int64]:
    """All n-grams of a length as word indices [N, length], in the order of their level."""
    columns = []
    nodes = np.arange(len(model.levels[length - 1].keys))
    for level in reversed(model.levels[:length]):
        nodes, last = np.divmod(level.keys[nodes], len(model.words))
        columns.append(last)
    return np.stack(columns[::-1], axis=1)
