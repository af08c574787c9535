"""Sentences to be read aloud, from the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from functools import lru_cache
from pathlib import Path

_WORDS = range(4, 15)
_SENTENCE = re.compile(r"[a-z][a-z' ]+[a-z]")


@lru_cache(maxsize=1)
def library_sentences() -> tuple[str, ...]:
    """Distinct sentences of 4 to 14 lower-case words, in alphabetical order."""
    found = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib"} & set(path.relative_to(root).parts):
            continue
        for text in _docstrings(path):
            for part in re.split(r"[.!?:;](?=\s|$)", " ".join(text.split())):
                sentence = part.strip().lower().replace(",", "")
                if _SENTENCE.fullmatch(sentence) and len(sentence.split()) in _WORDS:
                    found.add(" ".join(sentence.split()))
    return tuple(sorted(found))


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node))]
