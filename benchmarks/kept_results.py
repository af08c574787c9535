"""Studies that keep results as they come, and go on from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def require_same_options(folder: Path, args: argparse.Namespace, free: set[str]) -> None:
    """Refuse a folder that holds results of other options than these, but for those free."""
    place = folder / "options.json"
    options = {name: value for name, value in vars(args).items() if name not in free}
    options = json.loads(json.dumps(options, default=str))
    if place.is_file():
        try:
            before = json.loads(place.read_text())
        except ValueError as error:
            raise SystemExit(f"{place} is damaged: give another --out") from error
        if before != options:
            raise SystemExit(f"{folder} holds results of {before}: give another --out")
    write_whole(place, json.dumps(options, indent=1))


def kept_lines(path: Path) -> list[dict]:
    """The results of a file of JSON lines, which loses a last line that was cut off."""
    found = []
    for line in path.read_text().split("\n") if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    write_whole(path, "".join(json.dumps(each) + "\n" for each in found))
    return found


def write_whole(path: Path, text: str) -> None:
    """Write the whole file, or leave the old one."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)
