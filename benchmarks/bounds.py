"""Types of command-line options: numbers in a range, a device that is there."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch


def number(kind: type, least: float) -> Callable[[str], float]:
    """A finite number of a kind, of at least so much."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} is no {kind.__name__}") from error
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: at least {least} is needed")
        return value

    return parse


def device(name: str) -> str:
    """A device that tensors can be made on."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).partition("\n")[0]) from error
    return name
