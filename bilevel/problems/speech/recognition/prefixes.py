"""The prefixes that a beam search meets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bilevel.problems.speech.recognition.fusion import Fusion, State
from bilevel.problems.speech.recognition.tokens import BLANK


class Prefixes:
    """A tree of symbols; nodes have numbers, and 0 is the empty prefix.

    Attributes
    ----------
    parent, last
        By prefix: the one without its last symbol, and that symbol.
    prior
        By prefix: what the language model adds to its score.
    """

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion
        self.parent = [-1]
        self.last = [BLANK]
        self.prior = [0.0]
        self._state: list[State] = [fusion.start]
        self._children: dict[tuple[int, int], int] = {}

    def child(self, prefix: int, token: int) -> int:
        """The prefix that is one symbol longer."""
        key = (prefix, token)
        if key not in self._children:
            self._children[key] = len(self.parent)
            self.parent.append(prefix)
            self.last.append(token)
            part, state = self.fusion.step(self._state[prefix], token)
            self.prior.append(self.prior[prefix] + part)
            self._state.append(state)
        return self._children[key]

    def parts(self, prefix: int) -> NDArray[np.float64]:
        """[V], what each symbol adds to the prior of a prefix that grows by it."""
        return self.fusion.parts(self._state[prefix])

    def ended(self, prefix: int) -> float:
        """The prior, if the sentence ends here."""
        return self.prior[prefix] + self.fusion.end(self._state[prefix])

    def tokens(self, prefix: int) -> list[int]:
        """The symbols of a prefix."""
        found = []
        while prefix > 0:
            found.append(self.last[prefix])
            prefix = self.parent[prefix]
        return found[::-1]
