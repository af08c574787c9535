"""What a run of an example begins with: its options, its folder, its device."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch

from bilevel.errors import OptionError


def parse(parser: argparse.ArgumentParser, quick: dict) -> argparse.Namespace:
    """The options; with --quick those of a quick run, but for what is given beside it."""
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def require_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **bounds) -> None:
    """Refuse numbers that are too small, or not finite; options that were left out pass."""
    for name, least in bounds.items():
        value = getattr(args, name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and not least <= each < float("inf"):
                option = "--" + name.replace("_", "-")
                parser.error(f"{option} {each}: at least {least} is needed")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {folder}: {error.strerror}") from error


def device_of(name: str) -> str:
    """auto is the GPU if there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--device {name}: {reason}") from error
    return name


def file_hashes(args: argparse.Namespace) -> dict[str, str]:
    """Of the files that options name, what is in them."""
    named = {name: value for name, value in vars(args).items() if isinstance(value, str | Path)}
    return {
        name: hashlib.sha256(Path(value).read_bytes()).hexdigest()
        for name, value in named.items()
        if value and Path(value).is_file()
    }


def require_same_run(
    folder: Path, args: argparse.Namespace, free: set[str], name: str = "config.json"
) -> None:
    """A run is resumed with the options and files that it was begun with, but for those free."""
    place = folder / name
    if not place.is_file():
        raise OptionError(f"there is no run in {folder} to go on with: begin one there")
    try:
        before = json.loads(place.read_text())
        begun, files = before["arguments"], before["files"]
    except (ValueError, KeyError) as error:
        raise OptionError(f"{place} is damaged: begin a new run there") from error
    now = json.loads(json.dumps(vars(args), default=str))
    for option in now.keys() - free - {"resume", "out"}:
        if now[option] != begun.get(option):
            raise OptionError(
                f"the run in {folder} had {option}={begun.get(option)!r} and not {now[option]!r}: "
                "repeat its options, or begin a new run"
            )
    for option, found in file_hashes(args).items():
        if option not in free and found != files.get(option):
            raise OptionError(
                f"{getattr(args, option)} has changed since the run in {folder} began: begin a new "
                "run"
            )
