"""How texts are brought to one form before their words are compared."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from bilevel.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class TextNormaliser:
    """A text in the form in which references and hypotheses are compared.

    Parameters
    ----------
    case
        Whether upper and lower case are told apart.
    punctuation
        Whether punctuation stays; without it apostrophes inside words do, and hyphens part words.
    marks
        Whether what stands in angle or square brackets, such as ``<unk>`` and ``[laughter]``,
        counts as words.
    dropped
        Words that are left out, such as hesitations.
    """

    case: bool = False
    punctuation: bool = False
    marks: bool = False
    dropped: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.dropped, str):
            raise OptionError(f"dropped={self.dropped!r}, expected a set of words")

    def __call__(self, text: str) -> str:
        """The words of a text with single spaces between them."""
        text = unicodedata.normalize("NFKC", text).replace("’", "'")
        if not self.case:
            text = text.lower()
        if not self.marks:
            text = re.sub(r"<[^<>]*>|\[[^\[\]]*\]", " ", text)
        if not self.punctuation:
            text = re.sub(r"(?<!\S)'+|'+(?!\S)", " ", "".join(map(_spoken, text)))
        return " ".join(word for word in text.split() if word not in self.dropped)


def _spoken(character: str) -> str:
    """Letters, their marks, digits and apostrophes; nothing for joiners, or else a space."""
    category = unicodedata.category(character)
    if category[0] in "LMN" or character == "'":
        return character
    return "" if category == "Cf" else " "
