"""What every example writes: its configuration, its numbers, its figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import pandas as pd
import torch
from runs import file_hashes

from bilevel.files import replacing

PACKAGES = (
    "bilevel", "torch", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "cvxpy",
    "clarabel", "networkx", "transformers", "peft", "tokenizers", "safetensors", "datasets",
    "soundfile", "espeakng-loader", "jiwer",
)  # fmt: skip


def write_configuration(folder: Path, args: argparse.Namespace, name: str = "config.json") -> None:
    """Everything that is needed to run an example again."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    write_json(
        folder / name,
        {
            "script": Path(sys.argv[0]).name,
            "command_line": sys.argv[1:],
            "arguments": vars(args),
            "files": file_hashes(args),
            "versions": versions,
            "platform": platform.platform(),
        },
    )


def peak_memory(device: str) -> int:
    """Bytes: of a GPU since the last reset, otherwise of the whole process so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_json(path: Path, content: dict) -> None:
    """Write the whole file, or leave the old one."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1, default=str) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write the whole file, or leave the old one."""
    with replacing(path) as beside:
        table.to_csv(beside, index=False)


def save_figure(figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.set_layout_engine("none")  # the layout is found
    figure.savefig(folder / f"{name}.svg")
