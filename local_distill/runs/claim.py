"""One folder, one process: two runs in a folder at a time would delete each other's checkpoints and records.

The file system's own lock (``flock``) says whether somebody is in the folder: the kernel takes it back when its holder
ends, however it ends, so that a kill leaves nothing to clear away. What is written in the locked file says who.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from local_distill.errors import UserError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""The file in a folder that is claimed."""
UNSEEN_ELSEWHERE = {"localflock", "nolock", "local_lock=flock", "local_lock=all"}
"""Mount options of Lustre and NFS with which a lock holds on its own host alone."""

_held: set[int] = set()


def _let_go() -> None:
    """Let go of the parent's locks in a forked process, which would hold them after the parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True)
class Holder:
    """A process on some host holds a folder. started: seconds since 1970, as its kernel knows them."""

    host: str
    process: int
    started: float

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder."""
        return cls(platform.node(), os.getpid(), psutil.Process().create_time())

    @property
    def elsewhere(self) -> bool:
        """Return whether the process is on another host, where it cannot be looked for."""
        return self.host != platform.node()

    @property
    def has_ended(self) -> bool:
        """Return whether the process is surely gone; another process may have its number by now."""
        if self.elsewhere:
            return False
        try:
            return abs(psutil.Process(self.process).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {datetime.fromtimestamp(self.started):%Y-%m-%d %H:%M}"


def is_claimed(folder: Path) -> bool:
    """Return whether a process is in a folder, without touching its lock.

    Of a process on another host the file alone is known, which a kill there leaves behind.
    """
    try:
        return not Holder(**json.loads((folder / LOCK).read_bytes())).has_ended
    except (OSError, ValueError, TypeError):
        return False


@contextmanager
def claimed(lock: Path, what: str) -> Iterator[None]:
    """Keep all others out of a folder in here. lock: the locked file. what: the flag and the folder, for messages.

    Raises UserError, which names host and process, where somebody is in there; OSError where there can be no file.
    """
    descriptor = _claim(lock, what)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            if _is_still(lock, descriptor):  # else the folder was removed, and this is another run's
                lock.unlink()  # while it is ours: the next one makes a file of its own
            os.close(descriptor)


def _claim(lock: Path, what: str) -> int:
    """Return the locked file, open, with this process written in it."""
    with ExitStack() as closing:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        closing.callback(os.close, descriptor)
        taken = _is_taken(lock, descriptor)
        if not taken and not _is_still(lock, descriptor):  # whoever had it has ended just now
            return _claim(lock, what)
        holder = _holder(descriptor, patience=1.0 if taken else 0.0)
        if taken or (taken is None and holder and not holder.has_ended):
            unsure = taken is None and holder and holder.elsewhere
            remedy = f"if it has ended, remove {lock}" if unsure else "wait until it has ended"
            raise UserError(f"{what}: in use by {holder or 'another process'}; {remedy}, or choose another folder")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Holder.here())).encode(), 0)
        closing.pop_all()
        return descriptor


def _is_taken(lock: Path, descriptor: int) -> bool | None:
    """Return whether another process has the lock; else it is ours now. None: this disk cannot say for all hosts."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return None
    on = [disk for disk in psutil.disk_partitions(all=True) if lock.resolve().is_relative_to(disk.mountpoint)]
    options = max(on, key=lambda disk: len(disk.mountpoint)).opts if on else ""
    return None if UNSEEN_ELSEWHERE & set(options.split(",")) else False


def _is_still(lock: Path, descriptor: int) -> bool:
    """Return whether the open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int, patience: float) -> Holder | None:
    """Return who is written in the file; for so many seconds somebody may be about to be."""
    ends = time.monotonic() + patience
    while True:
        try:
            return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
        except (ValueError, TypeError):
            if time.monotonic() > ends:
                return None
        time.sleep(0.05)
