"""What a run of an example begins with: its options, its folder, its device."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

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


def file_or_name(text: str) -> Path | str:
    """A path where there is such a file or folder, otherwise what is known by that name."""
    try:
        return Path(text) if Path(text).exists() else text
    except OSError:  # longer than a name may be
        return text


def start_processes(args: argparse.Namespace) -> None:
    """Join the process group where torchrun started several; choose the device."""
    args.device = device_of(args.device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo" if args.device == "cpu" else "nccl")
        if args.device == "cuda":
            args.device = device_of(f"cuda:{os.environ['LOCAL_RANK']}")
            torch.cuda.set_device(args.device)


def file_hashes(args: argparse.Namespace) -> dict[str, str]:
    """Of the files that options name, what is in them; of folders, their files and sizes."""
    named = {
        name: value
        for name, value in vars(args).items()
        if isinstance(value, Path) and name != "out"
    }
    return {name: _hash(place) for name, place in named.items() if place.exists()}


@functools.cache
def _hash(place: Path) -> str:
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    files = sorted(each for each in place.rglob("*") if each.is_file())
    listed = "\n".join(f"{each.relative_to(place)} {each.stat().st_size}" for each in files)
    return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()


def require_same_run(
    folder: Path, args: argparse.Namespace, free: set[str], name: str = "config.json"
) -> None:
    """A run is resumed with the options and files that it was begun with, but for those free.

    Options that came into being later are not compared.
    """
    place = folder / name
    if not place.is_file():
        raise OptionError(f"there is no run in {folder} to go on with: begin one there")
    try:
        before = json.loads(place.read_text())
        begun, files = dict(before["arguments"]), dict(before["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{place} is damaged: begin a new run there") from error
    now = json.loads(json.dumps(vars(args), default=str))
    for option in sorted(now.keys() & begun.keys() - free - {"resume", "out"}):
        if now[option] != begun[option]:
            raise OptionError(
                f"the run in {folder} had {option}={begun[option]!r} and not {now[option]!r}: "
                "repeat its options, or begin a new run"
            )
    for option, found in file_hashes(args).items():
        if option not in free and found != files.get(option, found):
            raise OptionError(
                f"{getattr(args, option)} has changed since the run in {folder} began: begin a new "
                "run"
            )


def read_result(folder: Path) -> dict:
    """What a finished arm wrote."""
    place = folder / "result.json"
    try:
        return dict(json.loads(place.read_text()))
    except (ValueError, TypeError) as error:
        raise OptionError(f"{place} is damaged: remove it, and --resume measures anew") from error
