"""The exceptions for what the user can mend."""

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
    """The same in the middle of a run; told together with what was saved of it."""
