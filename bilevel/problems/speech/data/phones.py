"""One set of phones for all accents of English that espeak-ng speaks."""

# ruff: noqa: RUF001 (the letters of IPA are meant)

from __future__ import annotations

from bilevel.errors import DatasetError

SILENCE = "sil"
#: Canonical phone -> what is folded into it, without marks of stress.
_FOLDED = {
    "iː": "i", "ɪ": "ᵻ ɪə iə", "ɛ": "e ɛə eə", "eɪ": "ei eː əɪ", "æ": "a",
    "ɑː": "ɒ aː a: aa ɑə ɑ", "ɔː": "ɔ oː oə ɔə", "oʊ": "əʊ əu ʌʊ ʌʉ o", "uː": "ʉ ʉː u",
    "ʊ": "ʊə", "ʌ": "", "ə": "ɐ", "ɜː": "ɜ ɚ", "aɪ": "aɪə aɪɚ", "aʊ": "æʊ aʊə", "ɔɪ": "",
    "p": "", "b": "", "t": "ɾ ʔ t̪", "d": "d̪", "k": "", "ɡ": "g", "tʃ": "", "dʒ": "",
    "f": "", "v": "", "θ": "", "ð": "", "s": "", "z": "", "ʃ": "", "ʒ": "", "h": "x",
    "m": "m̩", "n": "n̩", "ŋ": "", "l": "əl ɫ l̩", "ɹ": "r", "w": "ʍ", "j": "ʲ",
    SILENCE: "",
}  # fmt: skip
PHONES = tuple(_FOLDED)
"""The phones, the pause ``sil`` among them."""
_CANONICAL = {each: phone for phone, rest in _FOLDED.items() for each in (phone, *rest.split())}


def fold_phone(symbol: str) -> str:
    """The canonical phone of an IPA symbol of espeak-ng's; the empty symbol is a pause.

    Marks of stress are dropped, and of a vowel that r colours, the vowel is kept.

    Raises
    ------
    DatasetError
        The symbol belongs to no phone of English.
    """
    bare = symbol.strip("ˈˌ ")
    if not bare:
        return SILENCE
    for end in range(len(bare), 0, -1):
        if bare[:end] in _CANONICAL:
            return _CANONICAL[bare[:end]]
    raise DatasetError(f"espeak-ng spoke the phone {symbol!r}, which is none of English")
