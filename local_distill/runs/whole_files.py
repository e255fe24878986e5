"""What is written to a disk: whole or not there, readable as other files are, and in one line where it cannot be."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_distill.errors import RunError, UserError, one_line

REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of the quota, or ask for more",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOENT: "it, or the folder that it was in, was removed meanwhile",
    errno.EISDIR: "a folder is where the file should be; move it away",
    errno.ENOTDIR: "a file is where a folder should be; move it away",
}
"""What to do about an error of the system; of others there is nothing to say."""
_OF_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write ``path``, a file or a folder, in here. Raises RunError naming it for a disk that cannot take it.

    safetensors and tokenizers raise exceptions of their own, with the words that Rust has for the system's errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number is None and not isinstance(error, OSError):
            raise
        reason = os.strerror(number) if number else one_line(error)
        remedy = f"; {REMEDIES[number]}" if number in REMEDIES else ""
        raise RunError(f"{path}: cannot be written ({reason}){remedy}") from error


def write_whole(path: Path, text: str) -> None:
    """Make ``path`` a file of this text; where that fails it stays as it was. Raises RunError.

    A token can decode to half of a surrogate pair, which UTF-8 has no bytes for; it is written as a backslash escape.
    """
    aside = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)  # it is not there any more where all went well


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which gets the name ``target`` at the end; after an error nothing is left of it.

    Raises OSError where it cannot be made, RunError where something is in ``target`` by then.
    """
    aside = target.with_name(f".partial-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    try:
        aside.mkdir()
        yield aside
        with writing(target):
            if target.exists():
                target.rmdir()  # it is empty, or this raises
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # it is not there any more where all went well


def readable_as_others(folder: Path) -> None:
    """Give the safetensors files in a folder, which are made for their owner alone, the mode that new files get there.

    A server that reads them may be another user's.
    """
    with writing(folder):
        new = folder / ".new"
        new.touch()
        mode = new.stat().st_mode & 0o777
        new.unlink()
        for file in folder.rglob("*.safetensors"):
            file.chmod(mode)


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _OF_RUST.search(str(error))
    return int(found[1]) if found else None


def expanded(path: str) -> str:
    """Return the path with the user's own folder in full."""
    return str(Path(path).expanduser()) if path.startswith("~/") else path
