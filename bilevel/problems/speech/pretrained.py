"""Folders of saved models: weights as safetensors beside a configuration in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from bilevel.errors import DatasetError
from bilevel.extras import require
from bilevel.files import replacing

_WEIGHTS, _CONFIGURATION = "model.safetensors", "config.json"


def save_model(module: nn.Module, folder: Path, kind: str, configuration: dict[str, Any]) -> None:
    """Write ``model.safetensors``, buffers included, and ``config.json``.

    Parameters
    ----------
    module
        Whose weights to write.
    folder
        Made where it does not exist.
    kind
        What the module is, so that another class refuses the folder.
    configuration
        What the module is built from.

    Raises
    ------
    DatasetError
        A file cannot be written; one that was there stays.
    """
    safetensors = require("safetensors.torch", "speech")
    weights = {
        name: value.detach().contiguous().cpu() for name, value in module.state_dict().items()
    }
    text = json.dumps({"model": kind, **configuration}, indent=1, ensure_ascii=False) + "\n"
    encoded = text.encode()
    with replacing(folder / _WEIGHTS) as path:
        try:
            safetensors.save_file(weights, path)
        except require("safetensors", "speech").SafetensorError as error:
            raise OSError(str(error)) from error
    with replacing(folder / _CONFIGURATION) as path:
        path.write_bytes(encoded)


def read_configuration(folder: Path, kind: str) -> dict[str, Any]:
    """The configuration of a module of this kind.

    Raises
    ------
    DatasetError
        there is none, it is no JSON, or it is of another kind.
    """
    path = folder / _CONFIGURATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["model"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"no model at {folder}: expected a folder of save_pretrained(), which holds "
            f"{_CONFIGURATION} and {_WEIGHTS}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is no configuration of a model: {error!r}") from error
    if found != kind:
        raise DatasetError(f"{path} is of a model of kind {found!r}, expected {kind!r}")
    return dict(content)


def unusable(folder: Path, error: Exception) -> DatasetError:
    """The error of a configuration from which no model can be built."""
    return DatasetError(f"{folder / _CONFIGURATION} describes no model: {error!r}")


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill a module with the weights that :func:`save_model` wrote.

    Raises
    ------
    DatasetError
        the file is missing, damaged, of a module of other shapes, or not finite.
    """
    safetensors = require("safetensors.torch", "speech")
    path = folder / _WEIGHTS
    if not path.is_file():
        raise DatasetError(f"no weights at {path}: expected a folder of save_pretrained()")
    try:
        weights = safetensors.load_file(path)
        module.load_state_dict(weights)
    except Exception as error:  # whatever the damaged bytes happen to decode to
        raise DatasetError(f"{path} does not hold this model's weights: {error}") from error
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise DatasetError(f"{path}: {name} holds NaN or infinite values")
