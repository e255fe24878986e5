"""What a person watches while a run goes on: a live screen, plain lines in a log, or nothing.

    silent.py   what a run tells people, and the terminal that shows nothing of it
    plain.py    one line a step, for logs
    live.py     one line a step above a region that is drawn anew
    course.py   what was measured so far, and what has changed

Whatever a model wrote is untrusted: it reaches a terminal only through ``clean``, and never as markup.
Knows nothing of files or experiment trackers.
"""

from __future__ import annotations

import io
import sys
from typing import IO, cast

from rich.console import Console

from local_distill.monitor.live import LiveTerminal
from local_distill.monitor.plain import LastingStream, PlainTerminal
from local_distill.monitor.silent import Terminal

__all__ = ["LiveTerminal", "PlainTerminal", "Terminal", "open_console", "open_terminal"]


def open_terminal(total_steps: int, first_step: int, is_main_process: bool) -> Terminal:
    """Return the terminal that suits this process: a live screen, plain lines for files and pipes, else nothing.

    total_steps: steps of the whole run. first_step: steps already done, above 0 in a resumed run.
    """
    if not is_main_process:
        return Terminal()
    console = open_console()
    # is_interactive believes FORCE_COLOR; a live screen would still fill a log file with cursor movements
    if console.is_interactive and console.file.isatty():
        console.file = cast(IO[str], LastingStream(console.file))
        return LiveTerminal(console, total_steps, first_step)
    return PlainTerminal(console.file, total_steps)


def open_console() -> Console:
    """Return standard output, where a character that the encoding lacks becomes "?" instead of ending the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)
