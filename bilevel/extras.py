"""Optional dependencies: imported where they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from bilevel.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Parameters
    ----------
    module
        Name of the module to import, e.g. ``"sklearn.datasets"``.
    extra
        The extra of this package that installs it, e.g. ``"sklearn"``.

    Returns
    -------
    ModuleType
        The imported module.

    Raises
    ------
    MissingExtraError
        If the module's package is not installed; an installed one that fails to import raises its
        own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingExtraError(
            f"the package {package!r} is needed here and is not installed; "
            f"install it with: pip install 'bilevel[{extra}]'"
        ) from error
