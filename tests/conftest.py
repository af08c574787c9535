"""What every test may rely on."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")  # no window, and no warning that there is none

# No test checks a time; a slow machine must not fail one. CI repeats the same examples, so that it
# judges the change and not the draw.
settings.register_profile("bilevel", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("bilevel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("BILEVEL_DATA"):
        return
    skip = pytest.mark.skip(reason="BILEVEL_DATA, the folder of the original files, is not set")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(skip)
