"""Pieces of whole recordings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from bilevel.options import check_positive
from bilevel.problems.speech.data.records import Utterance


def in_pieces(utterances: Iterable[Utterance], max_seconds: float) -> list[Utterance]:
    """Cut what lasts longer into consecutive pieces of equal length, as few as possible.

    A piece has neither text nor phones, since nothing tells which of them are its own: cut what is
    to be learnt from without labels. Utterances of unknown duration stay whole.
    """
    check_positive("max_seconds", max_seconds)
    found = []
    for each in utterances:
        count = math.ceil((each.duration or 0.0) / max_seconds)
        found += [each] if count < 2 else [_piece(each, number, count) for number in range(count)]
    return found


def _piece(whole: Utterance, number: int, count: int) -> Utterance:
    assert whole.duration is not None
    seconds = whole.duration / count
    return replace(
        whole,
        id=f"{whole.id}#{number}",
        offset=whole.offset + number * seconds,
        duration=seconds,
        text=None,
        phones=(),
    )
