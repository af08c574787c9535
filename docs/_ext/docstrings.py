"""What Sphinx must be told of docstrings that are written to be read in an editor.

In them bars are absolute values, never substitutions; attributes may share an entry, as parameters
do, and are called so; and a paragraph after the list of parameters, at the text's own indentation,
is prose again. A private base class stands for its own bases. The fields of a named tuple are
described by its attributes, not once more by Python's "Alias for field number 0".
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

_CODE_OR_BARS = re.compile(r"(`[^`]*`)|\|(?=\S)([^|`]*[^|`\s])\|")
_SHARED = re.compile(r"^(?P<names>\w+(?:, \w+)+)(?P<type> : .*|)$")
_SECTION = re.compile(r"^(Parameters|Attributes)$")


def escape_bars(lines: list[str]) -> None:
    """Escape bars outside of code and mathematics."""
    mathematics: int | None = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and mathematics is not None and indent <= mathematics:
            mathematics = None
        if line.lstrip().startswith(".. math::"):
            mathematics = indent
        if mathematics is None:
            lines[i] = _CODE_OR_BARS.sub(lambda found: found[1] or rf"\|{found[2]}\|", line)


def separate_attributes(lines: list[str]) -> None:
    """Give each attribute of a shared entry an entry of its own."""
    if "Attributes" not in lines:
        return
    i = lines.index("Attributes")
    while i < len(lines):
        shared = _SHARED.match(lines[i])
        i += 1
        if shared:
            end = i
            while end < len(lines) and (not lines[end] or lines[end][0].isspace()):
                end += 1
            text = lines[i:end]
            names = shared["names"].split(", ")
            lines[i - 1 : end] = [line for name in names for line in (name + shared["type"], *text)]
            i += len(names) * (len(text) + 1) - 1


def end_sections(lines: list[str]) -> None:
    """Head the prose after a list of parameters as notes."""
    start = next((i for i, line in enumerate(lines) if _SECTION.match(line)), None)
    if start is None:
        return
    for i in range(start + 2, len(lines)):
        prose = lines[i] and not lines[i][0].isspace() and not lines[i - 1].strip()
        entry = i + 1 < len(lines) and lines[i + 1].startswith((" ", "---"))
        if prose and not entry:
            lines[i:i] = ["Notes", "-----"]
            return


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    escape_bars(lines)
    separate_attributes(lines)
    end_sections(lines)


def skip_named_tuple_fields(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    return True if isinstance(obj, type(NamedTuple("_", [("field", int)]).field)) else None


def hide_private_bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    for base in [base for base in bases if base.__name__.startswith("_")]:
        at = bases.index(base)
        bases[at : at + 1] = base.__bases__


def setup(app: Sphinx) -> dict[str, bool]:
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-bases", hide_private_bases)
    app.connect("autodoc-skip-member", skip_named_tuple_fields)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
