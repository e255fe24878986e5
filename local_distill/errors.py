"""The exceptions for what the user can mend, and how a command ends on one."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import IO

from local_distill.process.signals import Stopped, stoppable, tell


class UserError(Exception):
    """A mistake in a flag, a file or the set-up; printed as one line, exit code 2, no traceback.

    The message names the flag or file, what was given, what is needed and what to do:
    ``--temperature: 0 given, needs to be above 0; use 0.01 for nearly greedy samples``.

    alone: whether no other process may know of it, so that this one must say it.
    """

    alone = False


OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Errors of the system that no program has made."""
PIPE = 13
"""The number of SIGPIPE, which Windows does not have."""


class RunError(UserError):
    """The same in the middle of a run; told together with what was saved of it."""


def exit_code_of(action: Callable[[], int]) -> int:
    """The action's own exit code; 2 after a user's mistake, 128 + n after signal n, each told in one line.

    Where nobody reads standard output any more, that of a program which a broken pipe ended.
    """
    try:
        with stoppable():
            code = action()
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        drop_output(sys.stdout)
        return 128 + PIPE
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        drop_output(sys.stdout)
        where = f"{error.filename}: " if error.filename else "standard output: "
        print(f"error: {where}cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except UserError as error:
        if error.alone or os.environ.get("LOCAL_RANK", "0") == "0":  # what all find, one a machine says
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Stopped as stopped:
        tell(stopped)
        return stopped.exit_code


def drop_output(stream: IO[str]) -> None:
    """From here on nothing that is written to a stream goes anywhere, what is still on its way there included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
