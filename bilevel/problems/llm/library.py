"""An embedded corpus: signatures and summaries of the functions of Python's standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bilevel.errors import DatasetError
from bilevel.problems.llm.records import Instruction, Preference

_PROMPT = "Signature: {}\nSummary: "
_NOT_LIBRARY = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """A documented function.

    Attributes
    ----------
    signature
        ``module.Class.name(arguments)``.
    summary
        The first sentence of its documentation.
    documentation
        All of it.
    """

    signature: str
    summary: str
    documentation: str


@dataclass(frozen=True)
class LibraryCorpus:
    """The records of one draw; no function is in two of the parts.

    Attributes
    ----------
    texts
        Documentation to pretrain a small model on; of no function that follows.
    instructions, later_instructions
        Signature and summary, to fine-tune on at first and in a second stage.
    preferences
        Signature, its summary, and another function's.
    test_instructions, test_preferences
        Of other functions: held out.
    """

    texts: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    later_instructions: tuple[Instruction, ...]
    preferences: tuple[Preference, ...]
    test_instructions: tuple[Instruction, ...]
    test_preferences: tuple[Preference, ...]


def library_corpus(
    instructions: int = 800, preferences: int = 800, tests: int = 200, seed: int = 0
) -> LibraryCorpus:
    """Draw records from the documentation of this Python's standard library.

    A rejected summary is another function's, of the same module where there is one. What the
    functions are depends on the version of Python.

    Parameters
    ----------
    instructions
        Of each of the two stages.
    preferences
        To train on.
    tests
        Held-out instructions, and as many preferences.
    seed
        Of the draw.

    Raises
    ------
    DatasetError
        More records than the library has functions.
    """
    functions = library_functions()
    sizes = (instructions, instructions, preferences, tests, tests)
    if min(sizes) < 1 or sum(sizes) > 0.8 * len(functions):
        raise DatasetError(
            f"{sum(sizes)} records are wanted, and of the {len(functions)} documented functions of "
            "this Python's library at most 80 % are drawn: ask for fewer, each at least 1"
        )
    random = np.random.default_rng(seed)
    order = iter(random.permutation(len(functions)))
    drawn = [[functions[next(order)] for _ in range(size)] for size in sizes]
    first, later, preferred, test, test_preferred = drawn
    rest = [functions[i] for i in order]
    return LibraryCorpus(
        texts=tuple(f"{_PROMPT.format(f.signature)}{f.documentation}" for f in rest),
        instructions=_instructions(first),
        later_instructions=_instructions(later),
        preferences=_preferences(preferred, random),
        test_instructions=_instructions(test),
        test_preferences=_preferences(test_preferred, random),
    )


def _instructions(functions: Sequence[Function]) -> tuple[Instruction, ...]:
    return tuple(Instruction(_PROMPT.format(each.signature), each.summary) for each in functions)


def _preferences(
    functions: Sequence[Function], random: np.random.Generator
) -> tuple[Preference, ...]:
    found = []
    for function in functions:
        others = [each for each in functions if each.summary != function.summary]
        module = function.signature.partition(".")[0]
        near = [each for each in others if each.signature.partition(".")[0] == module]
        other = (near or others)[random.integers(len(near or others))]
        found.append(
            Preference(_PROMPT.format(function.signature), function.summary, other.summary)
        )
    return tuple(found)


@lru_cache(maxsize=1)
def library_functions() -> tuple[Function, ...]:
    """The documented functions, one a summary, in the order of their files."""
    found: dict[str, Function] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _NOT_LIBRARY & set(parts):
            for function in _functions(path, parts):
                found.setdefault(function.summary, function)
    return tuple(found.values())


def _functions(path: Path, parts: Sequence[str]) -> Iterator[Function]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    module = [part for part in parts if part != "__init__"]
    pending: list[tuple[list[str], ast.AST]] = [(module, tree)]
    while pending:
        names, node = pending.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                pending.append(([*names, child.name], child))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(child) or "").split())
                summary = re.split(r"(?<=[.!?])\s", text)[0]
                if 4 <= len(summary.split()) <= 30:
                    arguments = ", ".join(a.arg for a in child.args.args if a.arg != "self")
                    yield Function(".".join([*names, child.name]) + f"({arguments})", summary, text)
