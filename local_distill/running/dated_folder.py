"""A folder named by when it was made."""

from __future__ import annotations

from datetime import datetime
from itertools import count
from pathlib import Path


def make_dated_folder(parent: Path) -> Path:
    """``parent/2026-11-24-161500``, new and empty; with -2 behind it, or -3 …, where that second has one already.

    Raises OSError where it cannot be made.
    """
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # at once, so that of two processes one alone has it
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count has no end")
