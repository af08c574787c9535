"""The code on the pages runs as it is printed there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import bilevel
from bilevel import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


executed_blocks = _load(DOCS / "_ext" / "executed_blocks.py")
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts and "auto_examples" not in page.parts
]


@pytest.fixture(autouse=True)
def default_dtype():
    held = torch.get_default_dtype()
    yield
    torch.set_default_dtype(held)


def _name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "distributed"], ids=_name)
def test_every_block_of_a_page_runs(page):
    namespace = executed_blocks.fresh_namespace(page)
    for block in executed_blocks.blocks_of(page.read_text(encoding="utf-8")):
        executed_blocks.execute(block, namespace)


@pytest.mark.slow
def test_the_distributed_script_runs_on_two_processes():
    page = DOCS / "howto" / "distributed.md"
    (block,) = executed_blocks.blocks_of(page.read_text(encoding="utf-8"))
    printed = executed_blocks.execute(block, executed_blocks.fresh_namespace(page))
    assert "the processes hold the same x: True" in printed


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_shows_no_python_that_is_not_run(page):
    fences = re.findall(r"^```\{?(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    allowed = {"design.md": ["python"]}  # a sketch of the calls in a step
    assert [fence for fence in fences if fence == "python"] == allowed.get(page.name, [])


def test_the_readme_runs():
    """With stand-ins for what its sketch of a training run leaves open."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    source = "\n".join(blocks)
    source = source.replace("backbone, head = ...", "backbone, head = stand_ins[:2]")
    source = re.sub(r"max_steps=[\d_]+", "max_steps=2", source)
    torch.manual_seed(0)
    loader = [torch.randn(4, 3) for _ in range(2)]
    namespace = {
        "stand_ins": (torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)),
        "preference_loss": lambda answer, batch: answer.square().mean(),
        "supervised_loss": lambda answer, batch: (answer - 1).square().mean(),
        "preference_loader": loader,
        "supervised_loader": loader,
    }
    exec(compile(source, "README.md", "exec"), namespace)


def test_every_error_is_explained():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    named = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert {name for name in named if f"errors.{name}`" not in page} == set()


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.rst"))
    missing = [
        name
        for name in bilevel.__all__
        if not name.startswith("__") and not re.search(rf"autoclass:: bilevel\.{name}\b", pages)
    ]
    assert missing == []
