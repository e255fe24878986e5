"""What can go wrong with files that somebody else wrote, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_distill.errors import UserError
from local_distill.models.hub_cache import check_caches

LOCAL_OR_REACHABLE = "or a hub id (owner/name) that can be reached"


@contextmanager
def in_one_line(flag: str, path: str, part: str, kind: str = "model") -> Iterator[None]:
    """Turn whatever a library raises for missing, unreachable or broken files into a UserError.

    part: of ``path``, which is or should be a ``kind``: ``its configuration``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a file of somebody else's can break its reader in any way
        check_caches(error)
        remedy = f"give a local {kind} folder, {LOCAL_OR_REACHABLE}"
        if Path(path).exists():
            remedy = f"mend it, or download the {kind} again"
        raise UserError(f"{flag} {path}: {part} cannot be loaded ({reason_of(error)}); {remedy}") from error


def local_folder(flag: str, path: str, kind: str = "model") -> Path | None:
    """The folder that ``path`` names, None for a hub id. Raises UserError for a file, or a folder that is not there."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{flag} {path}: a file, needs {_a(kind)} folder; give one, {LOCAL_OR_REACHABLE}")
    if path.startswith((".", "/")) or path.endswith("/") or path.count("/") > 1:
        raise UserError(f"{flag} {path}: no such folder; give a local {kind} folder or a hub id (owner/name)")
    return None


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def reason_of(error: Exception, width: int = 240) -> str:
    """The first sentence of what a library raised, in one line of at most ``width`` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines and lines[0].endswith(".") else " ".join(lines)  # what follows a sentence is advice
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"  # alone, "'hidden_size'" says little
    return reason if len(reason) <= width else reason[: width - 1] + "…"
