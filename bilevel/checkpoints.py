"""Files that hold a run's state: written atomically, read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bilevel.distributed import gather, rank, world_size
from bilevel.errors import CheckpointError

#: Raised when the layout of the saved dictionary changes.
FORMAT = 5


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a crash leaves the old file or the new one, never a part.

    Raises
    ------
    CheckpointError
        the file cannot be written.
    """
    path = _own(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(_partial(path), "wb") as file:
            torch.save({"format": FORMAT, "processes": world_size(), **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's own, where the disk is full
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    gather(None)  # no process replaces its file before all have written theirs
    os.replace(_partial(path), path)


def exists(path: Path) -> bool:
    """Whether there is a run to go on with: whether any process of any number wrote its file."""
    return any(gather(_own(path).is_file() or _of_another_number(path)))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        the file is missing, damaged, not a checkpoint of this library, or of another number of
        processes.
    """
    if not any(gather(_own(path).is_file())) and _of_another_number(path):
        raise _other_processes(path, "another number of")
    path = _own(path)
    if world_size() == 1:
        return _read(path)
    content = _read(path) if path.is_file() else None
    steps = gather(-1 if content is None else _step(content))
    if content is None or _step(content) < max(steps):
        # The run ended while the processes replaced their files: this one's new file is complete.
        path = _partial(path) if max(steps) >= 0 else path
        content = _read(path)
        if _step(content) != max(steps):
            raise CheckpointError(
                f"{path} is of step {_step(content)}, another process's file of step {max(steps)}: "
                "resume from files that one run wrote, with as many processes"
            )
    return content


def require_same_settings(saved: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than a run was begun with; parts of them are dicts.

    Raises
    ------
    CheckpointError
        Names the first that differs.
    """
    for name, value in settings.items():
        found = saved.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            require_same_settings(found, value)
        elif found != value:
            raise CheckpointError(
                f"the run was begun with {name}={found!r}, and this one has {value!r}: resume with "
                "the same options, or begin anew"
            )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the path that Checkpoint(path) wrote to, or leave "
            "resume= out to begin anew"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the damaged bytes happen to decode to
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of a bilevel run")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}"
        )
    if content["processes"] != world_size():
        raise _other_processes(path, content["processes"])
    return content


def _step(content: dict[str, Any]) -> int:
    try:
        return int(content["state"]["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"a checkpoint of {', '.join(content)} has no step") from error


def _own(path: Path) -> Path:
    return path if world_size() == 1 else path.with_name(f"{path.name}.rank{rank()}")


def _of_another_number(path: Path) -> bool:
    """Whether one process wrote here and these are several, or the other way round."""
    first = path.with_name(f"{path.name}.rank0")
    return (first if world_size() == 1 else path).is_file()


def _other_processes(path: Path, number: object) -> CheckpointError:
    return CheckpointError(
        f"{path} was written by {number} processes, and here are {world_size()}: resume with as "
        "many as the run was begun with, or begin anew"
    )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
