"""Folders in which the libraries of models and data sets keep what they load, and what to say where they cannot."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from local_distill.errors import UserError

REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
)
"""Errors of the system with which a folder is not made or written."""
HOME = "HF_HOME"
OWN = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE")
"""Variables that name one of the folders alone; all are in that of HF_HOME without them."""


def check_caches(error: BaseException) -> None:
    """Raise UserError where the error is that of a cache which cannot be written: which variable names it, what to do.

    A cache that can only be read is no mistake as long as everything is in it.
    """
    for failed in _chain(error):
        if not isinstance(failed, OSError) or failed.errno not in REFUSED or failed.filename is None:
            continue
        at = Path(os.fsdecode(failed.filename))
        for variable, folder in _caches():
            if (at.is_relative_to(folder) or folder.is_relative_to(at)) and not _can_be_written(folder):
                given = f"{variable} {folder}" if variable in os.environ else f"{variable} is not set, and {folder}"
                raise UserError(
                    f"{given}: cannot be written ({os.strerror(failed.errno)}); set {variable} to a folder that can be"
                ) from error


def _caches() -> Iterator[tuple[str, Path]]:
    for variable in OWN:
        if variable in os.environ:
            yield variable, Path(os.environ[variable]).expanduser()
    yield HOME, Path(constants.HF_HOME)


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
