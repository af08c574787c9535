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
    if place.is_file() and (before := json.loads(place.read_text())) != options:
        raise SystemExit(f"{folder} holds results of {before}: give another --out")
    place.write_text(json.dumps(options, indent=1))
