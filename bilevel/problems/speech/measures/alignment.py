"""Phones of an encoder's frames, from the times of an alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import DatasetError
from bilevel.problems.speech.measures.probes import NO_PHONE

if TYPE_CHECKING:
    from bilevel.problems.speech.data import Phone, Utterance

#: Seconds between encoder frames, and where the middle of the first one lies: it stands for four
#: windows of 25 ms that are 10 ms apart.
FRAME_SHIFT = 0.04
FIRST_FRAME = 0.0275


def phone_index(utterances: Sequence[Utterance]) -> dict[str, int]:
    """A number for every phone of aligned utterances, in alphabetical order."""
    symbols = sorted({phone.symbol for each in utterances for phone in each.phones})
    return {symbol: number for number, symbol in enumerate(symbols)}


def frame_phones(phones: Sequence[Phone], frames: int, index: Mapping[str, int]) -> Tensor:
    """The phone in the middle of each frame.

    Parameters
    ----------
    phones
        Symbol, start and end in seconds, in the order of time.
    frames
        How many frames the utterance has.
    index
        Numbers of the phones; frames of others, and between phones, get ``NO_PHONE``.

    Raises
    ------
    DatasetError
        phones that overlap, or end before they start.
    """
    labels = np.full(frames, NO_PHONE)
    if phones:
        starts = np.array([phone.start for phone in phones])
        ends = np.array([phone.end for phone in phones])
        numbers = np.array([index.get(phone.symbol, NO_PHONE) for phone in phones])
        wrong = np.flatnonzero((ends < starts) | (np.append(starts[1:], np.inf) < ends - 1e-6))
        if len(wrong):
            phone = phones[wrong[0]]
            raise DatasetError(
                f"phone {wrong[0]} ({phone.symbol!r}, {phone.start:g} to {phone.end:g} s) ends "
                "before it starts or after the next one starts; expected phones in order"
            )
        middles = FIRST_FRAME + FRAME_SHIFT * np.arange(frames)
        place = np.searchsorted(starts, middles, side="right") - 1
        inside = (place >= 0) & (middles < ends[place])
        labels[inside] = numbers[place[inside]]
    return torch.from_numpy(labels)
