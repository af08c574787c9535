"""Studies that keep results as they come, and go on from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bilevel.files import replacing


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
    with replacing(place) as beside:
        beside.write_text(json.dumps(options, indent=1))


def kept_lines(path: Path) -> list[dict]:
    """The results of a file of JSON lines, which loses a last line that was cut off."""
    if not path.is_file():
        return []
    whole, newline, cut = path.read_text().rpartition("\n")
    found = []
    for number, line in enumerate(whole.split("\n") if newline else (), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise SystemExit(f"{path}, line {number} is damaged: remove it ({error})") from error
    if cut:
        with replacing(path) as beside:
            beside.write_text(whole + newline)
    return found
