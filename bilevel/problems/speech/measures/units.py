r"""What discrete codes of frames say about the phones.

All measures follow from the table of how often each code met each phone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bilevel.errors import ProblemError
from bilevel.options import check_count

Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class CodeUsage:
    r"""How codes are used.

    Attributes
    ----------
    perplexity
        :math:`\exp H`, with H the entropy of the codes: V where all are used alike, 1 where one is.
    coverage
        Share of the V codes that occur.
    """

    perplexity: float
    coverage: float


def code_usage(codes: ArrayLike, size: int) -> CodeUsage:
    """Statistics of the codes [n] of a codebook with ``size`` codes."""
    counts = np.bincount(_indices("codes", codes, size), minlength=size)
    return CodeUsage(
        perplexity=float(np.exp(_entropy(counts))),
        coverage=float(np.mean(counts > 0)),
    )


def contingency(codes: ArrayLike, phones: ArrayLike, sizes: tuple[int, int]) -> Counts:
    """How often each code met each phone: a table of shape ``sizes`` = (V, P).

    Frames without a phone (label -1) are left out.
    """
    labels = np.asarray(phones)
    kept = labels >= 0
    if np.asarray(codes).shape != labels.shape:
        raise ProblemError(
            f"codes of shape {np.asarray(codes).shape} and phones of shape {labels.shape}, "
            "expected one of each a frame"
        )
    flat = _indices("codes", np.asarray(codes)[kept], sizes[0]) * sizes[1]
    flat = flat + _indices("phones", labels[kept], sizes[1])
    return np.bincount(flat, minlength=sizes[0] * sizes[1]).reshape(sizes)


@dataclass(frozen=True)
class PhoneInformation:
    r"""Mutual information of codes and phones.

    Attributes
    ----------
    pnmi
        :math:`I(\text{phone}; \text{code}) / H(\text{phone})`: the share of the uncertainty about
        the phone that the code takes away. Many codes on few frames bring it near 1 by chance.
    corrected
        PNMI minus what it is on average when the phones are shuffled among the frames.
    """

    pnmi: float
    corrected: float


def phone_information(
    codes: ArrayLike,
    phones: ArrayLike,
    sizes: tuple[int, int],
    *,
    shuffles: int = 10,
    seed: int = 0,
) -> PhoneInformation:
    """PNMI (HuBERT, arXiv:2106.07447), and the same corrected for chance.

    Parameters
    ----------
    codes, phones
        [n], one of each a frame; frames without a phone have -1.
    sizes
        Number of codes and of phones.
    shuffles, seed
        How many times the phones are shuffled.
    """
    check_count("shuffles", shuffles)
    table = contingency(codes, phones, sizes)
    kept = np.asarray(phones) >= 0
    codes, phones = np.asarray(codes)[kept], np.asarray(phones)[kept]
    generator = np.random.default_rng(seed)
    value = _pnmi(table)
    chance = [
        _pnmi(contingency(codes, generator.permutation(phones), sizes)) for _ in range(shuffles)
    ]
    return PhoneInformation(value, value - float(np.mean(chance)))


def majority_accuracy(train: Counts, test: Counts) -> float:
    """Share of held-out frames whose code had their phone as its most frequent one in training.

    Codes without a training frame stand for the most frequent phone of all.

    Parameters
    ----------
    train, test
        Tables of :func:`contingency` from disjoint voices.
    """
    if train.shape != test.shape or not (train.sum() > 0 and test.sum() > 0):
        raise ProblemError(
            f"tables of shapes {train.shape} and {test.shape} with {train.sum()} and {test.sum()} "
            "frames, expected frames in both, and one shape"
        )
    phone = np.where(train.any(axis=1), train.argmax(axis=1), train.sum(axis=0).argmax())
    return float(test[np.arange(len(test)), phone].sum() / test.sum())


def _pnmi(table: Counts) -> float:
    """I / H(phone), of a table of codes by phones."""
    phones = _entropy(table.sum(axis=0))
    if phones == 0.0:
        raise ProblemError("the frames have a single phone, about which no code can say anything")
    information = phones + _entropy(table.sum(axis=1)) - _entropy(table.ravel())
    return information / phones


def _entropy(counts: Counts) -> float:
    """In nats."""
    total = counts.sum()
    if total == 0:
        raise ProblemError("there are no frames to take statistics of")
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum())


def _indices(name: str, values: ArrayLike, size: int) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ProblemError(
            f"{name} of shape {found.shape} and type {found.dtype}, expected ints [n]"
        )
    if len(found) and not 0 <= found.min() <= found.max() < size:
        raise ProblemError(
            f"{name} between {found.min()} and {found.max()}, expected indices from 0 to {size - 1}"
        )
    return found.astype(np.int64)
