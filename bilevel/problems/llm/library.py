"""An embedded corpus: signatures and summaries of the functions of Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.llm.records import Instruction, Preference

_PROMPT = "Signature: {}\nSummary: "
_WORDS = range(4, 31)
#: Characters of a signature: longer ones, of which there are few, leave little room in a context.
_LONGEST = 160
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
    detail
        The last sentence, where it has the length of a summary too; empty otherwise.
    documentation
        All of it.
    """

    signature: str
    summary: str
    detail: str
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
        Signature, its summary, and a sentence that is none: the last of the documentation.
    test_instructions, test_preferences
        Of other functions: held out. No sentence is in two of the parts.
    """

    texts: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    later_instructions: tuple[Instruction, ...]
    preferences: tuple[Preference, ...]
    test_instructions: tuple[Instruction, ...]
    test_preferences: tuple[Preference, ...]

    @property
    def digest(self) -> str:
        """Of ``texts``: it tells apart the folders of models that were pretrained on others."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:8]


def library_corpus(
    instructions: int = 800, preferences: int = 800, tests: int = 200, seed: int = 0
) -> LibraryCorpus:
    """Draw records from the documentation of this Python's standard library.

    What the functions are depends on the version of Python.

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
    for name, count in (("instructions", instructions), ("preferences", preferences)):
        check_count(name, count)
    check_count("tests", tests)
    check_count("seed", seed, least=0)
    functions = library_functions()
    random = np.random.default_rng(seed)
    shuffled = [functions[i] for i in random.permutation(len(functions))]
    shuffled = [each for each in shuffled if len(each.signature) <= _LONGEST]
    # Many functions end alike: no sentence is rejected twice, nor where it sums another up.
    seen, detailed = {each.summary for each in functions}, []
    for each in shuffled:
        if each.detail and each.detail not in seen:
            seen.add(each.detail)
            detailed.append(each)
    preferred = _drawn(detailed, (preferences, tests), "with a sentence beside their summary")
    used = {each.signature for part in preferred for each in part}
    others = [each for each in shuffled if each.signature not in used]
    instructed = _drawn(others, (instructions, instructions, tests), "besides those of preferences")
    used |= {each.signature for part in instructed for each in part}
    first, later, test = (
        tuple(Instruction(_PROMPT.format(each.signature), each.summary) for each in part)
        for part in instructed
    )
    train, held_out = (
        tuple(Preference(_PROMPT.format(e.signature), e.summary, e.detail) for e in part)
        for part in preferred
    )
    texts = tuple(each.documentation for each in others if each.signature not in used)
    return LibraryCorpus(texts, first, later, train, test, held_out)


def _drawn(
    functions: Sequence[Function], sizes: Sequence[int], which: str
) -> list[Sequence[Function]]:
    if min(sizes) < 1 or sum(sizes) > 0.9 * len(functions):
        raise DatasetError(
            f"{' + '.join(map(str, sizes))} records are wanted, of the {len(functions)} documented "
            f"functions of this Python's library {which} at most 90 % are drawn: ask for fewer, "
            "each at least 1"
        )
    ends = np.cumsum(sizes)
    return [functions[end - size : end] for end, size in zip(ends, sizes, strict=True)]


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
                summary, *rest = re.split(r"(?<=[.!?])\s", text)
                if len(summary.split()) in _WORDS:
                    arguments = ", ".join(a.arg for a in child.args.args if a.arg != "self")
                    signature = ".".join([*names, child.name]) + f"({arguments})"
                    detail = rest[-1] if rest and len(rest[-1].split()) in _WORDS else ""
                    yield Function(signature, summary, detail, text)
