"""How a command ends: its exit code, and one line on what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import IO

from local_distill.errors import OF_THE_DISK, UserError, one_line
from local_distill.process.signals import Stopped, stoppable, tell

PIPE = 13
"""The number of SIGPIPE, which Windows does not have."""


def exit_code_of(action: Callable[[], int]) -> int:
    """Return the action's own exit code; 2 after a user's mistake, 128 + n after signal n, each told in one line.

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
            print("error:", one_line(error, width=None), file=sys.stderr)
        return 2
    except Stopped as stopped:
        tell(stopped)
        return stopped.exit_code


def drop_output(stream: IO[str]) -> None:
    """Let nothing that is written to a stream go anywhere any more, what is still on its way there included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
