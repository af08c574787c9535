"""What every example writes: its configuration, its numbers, its figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

PACKAGES = ("bilevel", "torch", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def write_configuration(folder: Path, args: argparse.Namespace) -> None:
    """Everything that is needed to run an example again."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    write_json(
        folder / "config.json",
        {
            "script": Path(sys.argv[0]).name,
            "command_line": sys.argv[1:],
            "arguments": vars(args),
            "versions": versions,
            "platform": platform.platform(),
        },
    )


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")


def save_figure(figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.set_layout_engine("none")  # the layout is found
    figure.savefig(folder / f"{name}.svg")
