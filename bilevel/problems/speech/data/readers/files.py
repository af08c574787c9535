"""Files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bilevel.errors import DatasetError


def files_below(path: Path) -> Iterator[Path]:
    """Every file below a folder; nothing below what is no folder.

    Raises
    ------
    DatasetError
        A folder cannot be read.
    """
    if path.is_dir():
        for folder, _, names in os.walk(path, onerror=_refuse):
            yield from (Path(folder, name) for name in names)


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error
