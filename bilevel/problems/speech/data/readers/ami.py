"""AMI's folders of meetings: headsets (IHM) or the first distant microphone (SDM).

Whole recordings without transcripts, for learning without labels in pieces; segments and words are
read from Lhotse's cuts.
"""

from __future__ import annotations

import re
from pathlib import Path

from bilevel.errors import DatasetError
from bilevel.problems.speech.data.readers.files import files_below
from bilevel.problems.speech.data.records import Utterance

_HEADSET = re.compile(r"\w+\.Headset-\d\.wav")
_DISTANT = re.compile(r"\w+\.Array1-01\.wav")


def recognises(path: Path) -> bool:
    """Whether there are recordings of AMI's names below a folder."""
    return bool(_recordings(path, _HEADSET) or _recordings(path, _DISTANT))


def read(path: Path) -> list[Utterance]:
    """One utterance a recording; of a folder with both kinds, a choice has to be made."""
    headsets, distant = read_ihm(path), read_sdm(path)
    if headsets and distant:
        raise DatasetError(
            f"{path} holds headset and distant recordings of AMI, the same speech twice: ask for "
            'format="ami-ihm" or format="ami-sdm"'
        )
    return headsets or distant


def read_ihm(path: Path) -> list[Utterance]:
    """The headsets' recordings alone; a headset is a speaker of its meeting."""
    return [
        Utterance(id=file.stem, path=file, speaker=file.stem.replace(".Headset", ""), language="en")
        for file in _recordings(path, _HEADSET)
    ]


def read_sdm(path: Path) -> list[Utterance]:
    """The distant microphone's recordings alone."""
    return [
        Utterance(id=file.stem, path=file, language="en") for file in _recordings(path, _DISTANT)
    ]


def _recordings(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(
        each
        for each in files_below(path)
        if each.parent.name == "audio" and pattern.fullmatch(each.name)
    )
