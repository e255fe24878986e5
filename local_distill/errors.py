"""The exceptions for what the user can mend, and how a command ends on one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in a flag, a file or the set-up; printed as one line, exit code 2, no traceback.

    The message names the flag or file, what was given, what is needed and what to do:
    ``--temperature: 0 given, needs to be above 0; use 0.01 for nearly greedy samples``.
    """


class RunError(UserError):
    """The same in the middle of a run; told together with what was saved of it."""


def exit_code_of(action: Callable[[], int]) -> int:
    """The action's own exit code, or 2 after a user's mistake, told in one line."""
    try:
        return action()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process finds the same mistake; one a machine says it
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
