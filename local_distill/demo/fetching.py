"""Packages that are needed for a minute, fetched from the package index as pip is set up to do."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from local_distill.errors import UserError
from local_distill.packages import installed


@contextmanager
def fetched(requirements: Sequence[str], otherwise: str) -> Iterator[None]:
    """Let packages be imported from a temporary folder, where pip, or else uv, puts them without their dependencies.

    otherwise: what to type where that cannot be done.
    Raises UserError where the packages cannot be had.
    """
    if not requirements:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [*_installer(), "install", "--quiet", "--no-deps", "--target", folder, *requirements]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode:
            reason = next(reversed(done.stderr.split("\n")[:-1]), "no reason was given").strip()
            raise UserError(f"demo: cannot fetch {' and '.join(requirements)} ({reason}); {otherwise}")
        sys.path.append(folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(folder)


def _installer() -> list[str]:
    """Return pip; where an environment was made by uv and has none, uv."""
    uv = None if installed("pip") else shutil.which("uv")
    return [uv, "pip"] if uv else [sys.executable, "-m", "pip", "--disable-pip-version-check"]
