"""The version, read by the build and by :mod:`bilevel`."""

from __future__ import annotations

__version__ = "0.1.0"
