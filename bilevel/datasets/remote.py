"""Upstream's files: from the folder BILEVEL_DATA, the cache, or a download, always verified.

The environment variable ``BILEVEL_DATA`` names a folder with copies of the files, ``BILEVEL_CACHE``
the folder for downloads (by default the operating system's cache folder for ``bilevel``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from bilevel.errors import DatasetError, OptionError
from bilevel.extras import require

UPSTREAM = (
    "https://raw.githubusercontent.com/Liuyuan999/Penalty_Based_Lagrangian_Bilevel/"
    "9e565c34f8914a57d6ed74557f06b321ac3e2e21"
)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file's path below :data:`UPSTREAM` and the SHA-256 sum of its bytes."""

    path: str
    sha256: str


REGISTRY = {
    "svm/diabete.txt": RemoteFile(
        "hyperparam_opt/datasets/diabete.txt",
        "e4c45e3a45cfce99fbc897edb76b0c74fbece588b953f5c3b1297bf28c52d6b0",
    ),
    "svm/fourclass.txt": RemoteFile(
        "hyperparam_opt/datasets/fourclass.txt",
        "6f5a73e857c0f4af2ca06e81d48c1be91fa566fbafaeaf6eb6c355f29fef4618",
    ),
    "seville/coordinates.xlsx": RemoteFile(
        "Transportation/sevilla_net/coordinates.xlsx",
        "0cc3a772924d3b76feeeb018acad7c4a9370f2da446dcf6109f55f1e38a346e6",
    ),
    "seville/population.xlsx": RemoteFile(
        "Transportation/sevilla_net/population.xlsx",
        "ac2ed62865b15c815d8fc80932ce27441b65f9e60fb57e0226a35eb85862b3c7",
    ),
    "seville/sevilla.png": RemoteFile(
        "Transportation/sevilla_net/sevilla.png",
        "d478812f8badc014da94c49012280e0cd8aedfeb678455afff6241f8323029ce",
    ),
}


def upstream_url(name: str) -> str:
    """Address of a file of :data:`REGISTRY` upstream."""
    return f"{UPSTREAM}/{REGISTRY[name].path}"


def fetch(name: str) -> Path:
    """Find a file of :data:`REGISTRY`: in the folder ``BILEVEL_DATA``, in the cache, or upstream.

    Parameters
    ----------
    name
        Its name in the registry, which is its path below ``BILEVEL_DATA`` and in the cache.

    Returns
    -------
    pathlib.Path
        A file whose bytes have the registered SHA-256 sum.

    Raises
    ------
    DatasetError
        If ``BILEVEL_DATA`` is not a folder, its copy has another checksum, the download fails or
        has another checksum, or the cache cannot be written.
    MissingExtraError
        If pooch is not installed, and the file is not in ``BILEVEL_DATA``, nor in a cache that
        ``BILEVEL_CACHE`` names.
    OptionError
        If no file of this name is registered.
    """
    if name not in REGISTRY:
        raise OptionError(f"no file {name!r} is registered; choose one of {', '.join(REGISTRY)}")
    folder = os.environ.get("BILEVEL_DATA")
    if folder:
        local = _local_copy(Path(folder).expanduser(), name)
        if local is not None:
            return local
    return _download(name)


def _local_copy(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        raise DatasetError(
            f"BILEVEL_DATA={folder} is not a folder; correct it, or unset it to download the files"
        )
    path = folder / name
    if not path.is_file():
        return None
    found, expected = _sha256(path), REGISTRY[name].sha256
    if found != expected:
        raise DatasetError(
            f"{path} has the SHA-256 sum {found} instead of {expected}: it is damaged or another "
            "version; replace it, or unset BILEVEL_DATA to download the original"
        )
    return path


def _download(name: str) -> Path:
    named, expected = os.environ.get("BILEVEL_CACHE"), REGISTRY[name].sha256
    if named:
        held = Path(named).expanduser() / name
        if held.is_file() and _sha256(held) == expected:
            return held
    pooch, requests = require("pooch", "sklearn"), require("requests", "sklearn")
    cache = Path(named or pooch.os_cache("bilevel")).expanduser()
    path, url = cache / name, upstream_url(name)
    by_hand = (
        f"try again, or download it elsewhere to {name} in a folder named by the environment "
        "variable BILEVEL_DATA"
    )
    try:
        # A damaged file must not outlive a failed download: the next reader would have to find out.
        if path.exists() and _sha256(path) != expected:
            path.unlink()
        pooch.retrieve(url, f"sha256:{expected}", path.name, path.parent)
    except requests.RequestException as error:
        raise DatasetError(f"{url} could not be downloaded ({error}); {by_hand}") from error
    except OSError as error:
        raise DatasetError(
            f"the cache folder {cache} cannot be used ({error}); name a folder that can be written "
            "in the environment variable BILEVEL_CACHE"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"{url} is not the file that was expected ({error}); {by_hand}"
        ) from error
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
