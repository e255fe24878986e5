"""A command that takes seconds says what it is doing, to somebody who is looking."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ERASE = "\r\x1b[2K"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show ``what`` in one line of a terminal's standard error until it is done; nowhere else, and not if empty."""
    if not what or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_ERASE, end="", file=sys.stderr, flush=True)
