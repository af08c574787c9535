"""Executable blocks of the Markdown pages: where they are, and how they run.

A block fenced as ``{run}`` is Python. All blocks of a page share one namespace, in the page's
order. Options stand on the block's first lines: ``:raises: Name`` for a block that must end in that
error, ``:show: code`` or ``:show: output`` for one of which only that is shown, ``:wrap:`` for
output that is prose.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_FENCE = re.compile(
    r"^(?P<fence>`{3,})\{run\}\n(?P<body>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL
)
_OPTION = re.compile(r"^:(?P<name>\w+):\s*(?P<value>.*)$")


@dataclass(frozen=True)
class Block:
    """One executable block.

    Attributes
    ----------
    source
        Python.
    options
        what stands between colons on its first lines.
    line
        line of the page on which the source begins.
    """

    source: str
    options: dict[str, str] = field(default_factory=dict)
    line: int = 1


def blocks_of(page: str) -> Iterator[Block]:
    """The executable blocks of a Markdown page."""
    for match in _FENCE.finditer(page):
        lines = match["body"].splitlines()
        options = {}
        while lines and (option := _OPTION.match(lines[0])):
            options[option["name"]] = option["value"].strip()
            lines.pop(0)
        line = page.count("\n", 0, match.start("body")) + len(options) + 1
        yield Block("\n".join(lines), options, line)


def fresh_namespace(page: Path) -> dict[str, Any]:
    """What a page's first block finds; torch is as a new interpreter has it."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    return {"__name__": "__main__", "__file__": str(page)}


def execute(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block, and return what it prints and the value of its last expression.

    Raises
    ------
    AssertionError
        the block was to end in an error and did not.
    """
    # Empty lines in front make a traceback count in lines of the page.
    tree = ast.parse("\n" * (block.line - 1) + block.source)
    page = namespace["__file__"]
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    expected = block.options.get("raises")
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(tree, page, "exec"), namespace)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), page, "eval"), namespace)
                if value is not None:
                    print(repr(value))
        except Exception as error:
            if expected != type(error).__name__:
                raise
            print(f"{expected}: {error}")
        else:
            assert expected is None, f"{page}, line {block.line}: expected {expected}, none came"
    return printed.getvalue()
