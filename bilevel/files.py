"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bilevel.errors import DatasetError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside the path; it takes its place where nothing failed.

    Raises
    ------
    DatasetError
        The file system refuses; a file that was there stays.
    """
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()
