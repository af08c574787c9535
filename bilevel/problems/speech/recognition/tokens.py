"""The symbols that a recogniser predicts: characters or phones, and the blank of CTC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bilevel.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from bilevel.problems.speech.data import Utterance

#: Index of the blank in every vocabulary.
BLANK = 0
#: How the blank is written; decoding never yields it.
BLANK_SYMBOL = "<blank>"
KINDS = ("characters", "phones")


@dataclass(frozen=True)
class Vocabulary:
    """Symbols by index, the blank first.

    Parameters
    ----------
    symbols
        The blank, then every symbol once.
    kind
        ``"characters"`` of texts, whose words a space separates, or ``"phones"``.
    skipped
        Symbols that transcripts may contain and that are not predicted, such as silence.

    Raises
    ------
    OptionError
        symbols without the blank in front, doubled, empty, no strings, or also skipped; another
        kind.
    """

    symbols: tuple[str, ...]
    kind: str = "characters"
    skipped: frozenset[str] = frozenset()
    _index: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"kind={self.kind!r}, expected one of {', '.join(KINDS)}")
        if not self.symbols or self.symbols[BLANK] != BLANK_SYMBOL:
            raise OptionError(
                f"the symbols begin with {self.symbols[:1]}, expected the blank {BLANK_SYMBOL!r} "
                "in front: it is index 0"
            )
        for index, symbol in enumerate(self.symbols):
            if not isinstance(symbol, str):
                raise OptionError(f"symbol {symbol!r} (index {index}) is not a string")
            if symbol in self._index or not symbol or symbol in self.skipped:
                raise OptionError(
                    f"symbol {symbol!r} (index {index}) is empty, given twice, or also skipped"
                )
            if self.kind == "characters" and index != BLANK and len(symbol) != 1:
                raise OptionError(f"symbol {symbol!r} (index {index}) is not a single character")
            self._index[symbol] = index

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def space(self) -> int | None:
        """Index of the space that separates words; ``None`` where there are no words."""
        return self._index.get(" ") if self.kind == "characters" else None

    @classmethod
    def of_texts(cls, texts: Iterable[str], skipped: Iterable[str] = ()) -> Vocabulary:
        """The characters of texts, sorted; the space is always one of them."""
        skipped = frozenset(skipped)
        found = {" "}.union(*texts) - skipped
        return cls((BLANK_SYMBOL, *sorted(found)), "characters", skipped)

    @classmethod
    def of_phones(cls, utterances: Iterable[Utterance], skipped: Iterable[str] = ()) -> Vocabulary:
        """The phones of aligned utterances, sorted.

        Raises
        ------
        DatasetError
            none of the utterances has phones.
        OptionError
            ``skipped`` is a single string.
        """
        if isinstance(skipped, str):
            raise OptionError(f"skipped={skipped!r}, expected a list of phones: [{skipped!r}]")
        skipped = frozenset(skipped)
        found = {phone.symbol for each in utterances for phone in each.phones} - skipped
        if not found:
            raise DatasetError(
                "none of the utterances has phones; give aligned ones, or predict characters with "
                "Vocabulary.of_texts"
            )
        return cls((BLANK_SYMBOL, *sorted(found)), "phones", skipped)

    def encode(self, transcript: str | Iterable[str], name: str = "the transcript") -> list[int]:
        """Indices of a transcript's symbols.

        Parameters
        ----------
        transcript
            A text, or phones: a sequence of them, or a text with spaces between them.
        name
            What messages call the transcript.

        Raises
        ------
        DatasetError
            a symbol is not in the vocabulary.
        """
        if self.kind == "phones" and isinstance(transcript, str):
            transcript = transcript.split()
        indices = []
        for position, symbol in enumerate(transcript):
            if symbol in self.skipped:
                continue
            index = self._index.get(symbol, BLANK)
            if index == BLANK:
                raise DatasetError(
                    f"{name} has the symbol {symbol!r} at position {position}, which is not among "
                    f"the vocabulary's {len(self) - 1} {self.kind}: make the vocabulary from all "
                    "transcripts, normalise them alike, or list the symbol as skipped"
                )
            indices.append(index)
        return indices

    def target(self, utterance: Utterance) -> list[int]:
        """Indices of an utterance's text or phones; raises as :meth:`encode`, naming it."""
        name = f"utterance {utterance.id!r}"
        transcript = utterance.phones if self.kind == "phones" else utterance.text
        if not transcript:
            raise DatasetError(
                f"{name} has no {'phones' if self.kind == 'phones' else 'text'}: leave it out, or "
                "give its transcript"
            )
        if self.kind == "phones":
            return self.encode((phone.symbol for phone in utterance.phones), name)
        assert utterance.text is not None
        return self.encode(utterance.text, name)

    def words(self, utterance: Utterance) -> list[str]:
        """What a language model scores of an utterance: the words of its text, or its phones."""
        return self.decode(self.target(utterance)).split()

    def decode(self, indices: Iterable[int]) -> str:
        """The text of characters' indices, or phones with spaces between them."""
        symbols = [self.symbols[index] for index in indices if index != BLANK]
        return ("" if self.kind == "characters" else " ").join(symbols)
