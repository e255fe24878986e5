"""What can go wrong with files that somebody else wrote, or that the libraries keep, in one line."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from local_distill.config.places import check_is_there
from local_distill.errors import UserError, first_sentence

LOCAL_OR_REACHABLE = "or a hub id (owner/name) that can be reached"
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip
"""Errors of the system with which a folder is not made or written."""
HOME = "HF_HOME"
OWN = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE")
"""Variables that name one of the folders alone; all are in that of HF_HOME without them."""


@contextmanager
def in_one_line(flag: str, path: str, part: str, kind: str = "model") -> Iterator[None]:
    """Turn whatever a library raises for missing, unreachable or broken files into a UserError.

    part: of ``path``, which is or should be a ``kind``: ``its configuration``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a file of somebody else's can break its reader in any way
        check_caches(error)
        remedy = f"give a local {kind} folder, {LOCAL_OR_REACHABLE}"
        if Path(path).exists():
            remedy = f"mend it, or download the {kind} again"
        raise UserError(f"{flag} {path}: {part} cannot be loaded ({first_sentence(error)}); {remedy}") from error


def local_folder(flag: str, path: str, kind: str = "model") -> Path | None:
    """Return the folder that ``path`` names, None for a hub id. Raises UserError for a file, or for no such folder."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(f"{flag} {path}: a file, needs {article} {kind} folder; give one, {LOCAL_OR_REACHABLE}")
    check_is_there(flag, path, kind)
    return None


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
    """Return the error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
