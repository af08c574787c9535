"""Estimating an n-gram language model: interpolated modified Kneser-Ney smoothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.speech.recognition.ngram import (
    BEGIN,
    END,
    UNKNOWN,
    Level,
    NGramModel,
    build_level,
    require_words,
)

Gram: TypeAlias = tuple[int, ...]

#: Discounts of n-grams seen once, twice, oftener, where there are too few to estimate them.
_FEW = (0.5, 1.0, 1.5)
#: log10 probability of <s>, which is never predicted.
_NEVER = -99.0


def estimate_ngrams(sentences: Iterable[Sequence[str]], order: int = 3) -> NGramModel:
    r"""Interpolated modified Kneser-Ney (Chen and Goodman 1999), as lmplz of kenlm estimates it.

    .. math::
        p(w \mid h) = \frac{a(hw) - D_{a(hw)}}{\sum_v a(hv)} + \gamma(h)\, p(w \mid h')

    a: how often an n-gram was seen, for the longest ones and those that begin a sentence, and how
    many different words were seen before it, for the others. D₁, D₂ and D₃₊ follow, for each
    length, from how many n-grams have a = 1, 2, 3, 4. γ makes the probabilities add up to one. The
    shortest context backs off to a uniform distribution, which gives ``<unk>`` its probability.

    Parameters
    ----------
    sentences
        Each a sequence of words, without ``<s>`` and ``</s>``.
    order
        Length of the longest n-grams.

    Raises
    ------
    DatasetError
        no sentence, none as long as ``order``, or a word that ARPA files cannot hold.
    """
    check_count("order", order)
    index = {word: i for i, word in enumerate((UNKNOWN, BEGIN, END))}
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for words in sentences:
        require_words(words)
        _check(words)
        gram = (1, *(index.setdefault(word, len(index)) for word in words), 2)
        for length, counter in enumerate(counts, start=1):
            counter.update(zip(*(gram[start:] for start in range(length)), strict=False))
    if not counts[0]:
        raise DatasetError("there are no sentences to estimate a language model from")
    longest = sum(map(bool, counts))
    if longest < order:
        raise DatasetError(
            f"no sentence has {order} words, its begin and end included, so there are no "
            f"{order}-grams: estimate with order={longest}"
        )
    del counts[0][1,]  # <s> is a context only
    adjusted = [*map(_continuations, counts[:-1], counts[1:]), counts[-1]]
    uniform = 1.0 / (len(index) - 1)
    shorter: dict[Gram, float] = {(): uniform}
    probabilities, weights = [], []
    for counter in adjusted:
        shorter, weight = _interpolated(counter, shorter)
        probabilities.append(shorter)
        weights.append(weight)
    probabilities[0].setdefault((0,), weights[0][()] * uniform)
    probabilities[0][1,] = 10.0**_NEVER
    levels: list[Level] = []
    for listed, backoff in zip(probabilities, [*weights[1:], {}], strict=True):
        levels.append(_level(levels, listed, backoff, len(index)))
    return NGramModel(tuple(index), tuple(levels))


def _check(words: Sequence[str]) -> None:
    for word in words:
        reserved = (BEGIN, END, UNKNOWN.upper())
        if not isinstance(word, str) or word in reserved or word.split() != [word]:
            raise DatasetError(
                f"the word {word!r} cannot be part of a language model: it is empty, no string, "
                f"contains a blank, or is {' or '.join(reserved)}; split sentences into words first"
            )


def _continuations(seen: Counter[Gram], longer: Counter[Gram]) -> Counter[Gram]:
    """How many words precede each n-gram; nothing precedes <s>, so its n-grams keep their count."""
    adjusted: Counter[Gram] = Counter(gram[1:] for gram in longer)
    adjusted.update({gram: count for gram, count in seen.items() if gram[0] == 1})
    return adjusted


def _discounts(counter: Counter[Gram]) -> tuple[float, float, float]:
    numbers = Counter(counter.values())
    ones, twos = numbers[1], numbers[2]
    if not all(numbers[count] for count in (1, 2, 3, 4)):
        return _FEW
    share = ones / (ones + 2 * twos)
    first, second, third = (
        count - (count + 1) * share * numbers[count + 1] / numbers[count] for count in (1, 2, 3)
    )
    usable = 0.0 <= first <= 1.0 and 0.0 <= second <= 2.0 and 0.0 <= third <= 3.0
    return (first, second, third) if usable else _FEW


def _interpolated(
    counter: Counter[Gram], shorter: dict[Gram, float]
) -> tuple[dict[Gram, float], dict[Gram, float]]:
    """Probabilities of the n-grams, and the weight of the shorter context for each context."""
    discounts = _discounts(counter)
    totals: dict[Gram, int] = defaultdict(int)
    weights: dict[Gram, float] = defaultdict(float)
    for gram, count in counter.items():
        totals[gram[:-1]] += count
        weights[gram[:-1]] += discounts[min(count, 3) - 1]
    for context, total in totals.items():
        weights[context] /= total
    probabilities = {
        gram: (count - discounts[min(count, 3) - 1]) / totals[gram[:-1]]
        + weights[gram[:-1]] * shorter[gram[1:] if len(gram) > 1 else ()]
        for gram, count in counter.items()
    }
    return probabilities, dict(weights)


def _level(
    levels: list[Level], listed: dict[Gram, float], backoff: dict[Gram, float], words: int
) -> Level:
    grams = np.array(list(listed), dtype=np.int64)
    log10 = np.log10(list(listed.values())).astype(np.float32)
    weights = np.log10([backoff.get(gram, 1.0) for gram in listed]).astype(np.float32)
    return build_level(levels, grams, log10, weights, words)
