"""A command that takes seconds says what it is doing, to somebody who is looking."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ERASE = "\r\x1b[2K"


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show ``what`` in one line of a terminal's standard error until it is done; nowhere else, and not if empty.

    Of a run's processes the first one says it. Gives what shows something else there instead.
    """
    if not what or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("RANK", "0") != "0":
        yield lambda _: None
        return

    def show(text: str) -> None:
        print(f"{_ERASE}{text} …", end="", file=sys.stderr, flush=True)

    print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield show
    finally:
        print(_ERASE, end="", file=sys.stderr, flush=True)
