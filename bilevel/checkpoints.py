"""Files that hold a run's state: written atomically, read without executing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from bilevel.distributed import rank, world_size
from bilevel.errors import CheckpointError

#: Raised when the layout of the saved dictionary changes.
FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a crash leaves the old file or the new one, never a part."""
    path = _own(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        the file is missing, damaged, or not a checkpoint of this library.
    """
    path = _own(path)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the path that Checkpoint(path) wrote to, or leave "
            "resume= out to begin anew"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of a bilevel run")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}"
        )
    return content


def _own(path: Path) -> Path:
    return path if world_size() == 1 else path.with_name(f"{path.name}.rank{rank()}")
