"""Commands in processes of their own, forked from one that has imported everything: a second each instead of six."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local_distill.commands import main

PATIENCE = 90.0
"""Seconds after which a process counts as one that hangs."""


@dataclass(frozen=True)
class Ended:
    """How a process ended. code: negative for the signal that ended it; None for one that hung and was killed."""

    code: int | None
    out: str
    err: str

    @property
    def tracebacks(self) -> int:
        """How many it printed."""
        return (self.out + self.err).count("Traceback (most recent call last)")

    @property
    def lines(self) -> list[str]:
        """What it says of what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def in_one_line(self) -> bool:
        """Whether it ended as after any mistake of a user's."""
        return self.code == 2 and len(self.lines) == 1 and not self.tracebacks


class Command:
    """``local-distill`` with these words, begun in ``folder``. logs: where its output goes, another folder, for its own
    may become full. most_bytes: of any file that it writes (RLIMIT_FSIZE)."""

    def __init__(self, words: list[str], folder: Path, logs: Path, most_bytes: int | None = None) -> None:
        def run() -> int:
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
            return main([str(word) for word in words])

        self._begin(run, folder, logs)

    def _begin(self, run: Callable[[], int], folder: Path, logs: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [logs / f"{os.getpid()}-{time.monotonic_ns()}.{kind}" for kind in ("out", "err")]
        for file in self._files:
            file.touch()  # it may be killed before it has opened them
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(run, self._files, folder)

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended already."""
        if self._poll() is None:
            os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._poll() is None

    def wait(self) -> Ended:
        """How it ended."""
        ends = time.monotonic() + PATIENCE
        while self.running() and time.monotonic() < ends:
            time.sleep(0.002)
        hung = self.running()
        if hung:
            os.kill(self.pid, signal.SIGKILL)
            while self.running():
                time.sleep(0.002)
        out, err = (file.read_text(errors="replace") for file in self._files)
        return Ended(None if hung else self._poll(), out, err)

    _code: int | None = None

    def _poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


class Service(Command):
    """Something that serves until it is killed. serve: starts it and gives its address."""

    def __init__(self, serve: Callable[[], str], folder: Path) -> None:
        address = folder / f"{time.monotonic_ns()}.address"

        def run() -> int:
            aside = address.with_suffix(".tmp")
            aside.write_text(serve())
            aside.rename(address)
            while True:
                time.sleep(60)

        self._begin(run, folder, folder)
        while not address.exists():
            assert self.running(), self.wait().err
            time.sleep(0.01)
        self.url = address.read_text()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        self.wait()


def _become(run: Callable[[], int], files: list[Path], folder: Path) -> None:
    """In the child: never returns."""
    code = 1
    try:
        for descriptor, file in zip((1, 2), files, strict=True):
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        code = run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
