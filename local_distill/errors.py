"""The exceptions for what the user can mend, and what others say in one line."""

from __future__ import annotations

import errno


class UserError(Exception):
    """A mistake in a flag, a file or the set-up; printed as one line, exit code 2, no traceback.

    The message names the flag or file, what was given, what is needed and what to do:
    ``--temperature: 0 given, needs to be above 0; use 0.01 for nearly greedy samples``.

    alone: whether no other process may know of it, so that this one must say it.
    """

    alone = False


OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Errors of the system that no program has made."""


class RunError(UserError):
    """A mistake that shows in the middle of a run; told together with what was saved of it."""


def one_line(error: BaseException, width: int | None = 240) -> str:
    """Return what an exception says as one line of at most ``width`` characters; its type where it says nothing."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, width)


def with_type(error: BaseException, width: int | None = 240) -> str:
    """Return the type of an exception and the first line of what it says; further lines are details."""
    lines = str(error).strip().splitlines() or ["no message"]
    return _cut(f"{type(error).__name__}: {lines[0].rstrip()}", width)


def first_sentence(error: BaseException) -> str:
    """Return what a library raised as one line: its first line where that is a sentence, for what follows is advice.

    The type stands before it where the words alone may say little, such as "'hidden_size'".
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines and lines[0].endswith(".") else " ".join(lines)
    return _cut(said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}", 240)


def without_advice(error: BaseException) -> str:
    """Return the first sentence of what torch says of memory that ran out, for what follows advises its programmers."""
    return str(error).partition(". ")[0]


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"
