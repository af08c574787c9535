"""The Sphinx directive ``{run}``: Python that is executed when the site is built.

Whatever a page shows as the output of its code is the output of this build.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from executed_blocks import Block, execute, fresh_namespace
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

#: Columns that a page shows without scrolling.
_WIDTH = 88


class Run(SphinxDirective):
    """A block of Python with its output below."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "raises": directives.unchanged_required,
        "wrap": directives.flag,
        "show": lambda value: directives.choice(value, ("code", "output")),
    }

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        page = Path(self.env.doc2path(self.env.docname))
        if "run_namespace" not in self.env.temp_data:
            self.env.temp_data["run_namespace"] = fresh_namespace(page)
        try:
            output = execute(
                Block(source, self.options, self.lineno), self.env.temp_data["run_namespace"]
            )
        except Exception as error:
            raise ExtensionError(
                f"{page}, block at line {self.lineno}: {type(error).__name__}: {error}", error
            ) from error
        show = self.options.get("show", "both")
        shown: list[nodes.Node] = []
        if show != "output":
            shown.append(_literal(source, "python"))
        if show != "code" and output.strip():
            if {"raises", "wrap"} & set(self.options):
                output = "\n".join(
                    textwrap.fill(line, _WIDTH, subsequent_indent="    ")
                    for line in output.splitlines()
                )
            shown.append(nodes.container("", _literal(output.rstrip(), "none"), classes=["output"]))
        return shown


def _literal(text: str, language: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language=language)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("run", Run)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
