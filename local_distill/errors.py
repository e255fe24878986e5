"""The exceptions for what the user can mend, and how a command ends on one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from local_distill.running.signals import Stopped, stoppable, tell


class UserError(Exception):
    """A mistake in a flag, a file or the set-up; printed as one line, exit code 2, no traceback.

    The message names the flag or file, what was given, what is needed and what to do:
    ``--temperature: 0 given, needs to be above 0; use 0.01 for nearly greedy samples``.

    alone: whether no other process may know of it, so that this one must say it.
    """

    alone = False


class RunError(UserError):
    """The same in the middle of a run; told together with what was saved of it."""


def exit_code_of(action: Callable[[], int]) -> int:
    """The action's own exit code; 2 after a user's mistake, 128 + n after signal n, each told in one line."""
    try:
        with stoppable():
            return action()
    except UserError as error:
        if error.alone or os.environ.get("LOCAL_RANK", "0") == "0":  # what all find, one a machine says
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Stopped as stopped:
        tell(stopped)
        return stopped.exit_code
