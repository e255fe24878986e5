"""A folder named by when it was made."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


def make_dated_folder(parent: Path) -> Path:
    """``parent/2026-11-24-161500``, new and empty; with -2 behind it, or -3 …, where that second has one already.

    Raises OSError where it cannot be made.
    """
    folder = parent / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    name, number = folder.name, 1
    while True:
        try:
            folder.mkdir()  # at once, so that of two processes one alone has it
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{name}-{number}"
