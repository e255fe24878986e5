"""SIGINT and SIGTERM while a command has nothing to save yet: it ends at once, in one line.

Imported before torch is, which takes seconds; so nothing heavy is imported here.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAME = 2.0
"""Seconds within which a second signal is the first one again: schedulers tell every process, and launchers too."""
GRACE = 5.0
"""Seconds for what is under way to be put in order, before the process ends as it is."""
AGAIN = 0.05
"""Seconds after which a signal comes again whose exception was swallowed."""


class Stopped(BaseException):
    """A signal ends this command. Not an Exception: nobody but the command itself has an answer to it."""

    def __init__(self, number: int, what: str = "") -> None:
        super().__init__(what)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """Return the exit code that a shell gives for the signal."""
        return 128 + self.signal

    def __str__(self) -> str:
        return " ".join(filter(None, (f"stopped by {self.signal.name}", *self.args)))


class _Ending:
    """The end of this process is known here, as far as it has come.

    noted: when the first signal came. awaited: whether somebody waits for Stopped. said: whether the user was told.
    swallowed: the signal whose exception went nowhere. again: whether Stopped is to be raised once more for it.
    others: the hook for exceptions that go nowhere which was there before. left: what the user is told of what is
    left.
    """

    noted: float | None = None
    awaited = False
    said = False
    swallowed: int | None = None
    again = False
    others: Callable[[sys.UnraisableHookArgs], object] = sys.__unraisablehook__
    left: Callable[[], str] = str


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process in here; inside ``stoppable`` by raising Stopped in the main thread.

    Where that is in a destructor or a callback, out of which Python lets no exception, it is raised again soon after.
    Where it is in a library which does not come back, such as one that waits for another process, or which swallows
    what is raised, the process ends after GRACE seconds, or at another signal.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or any(signal.getsignal(number) is _end for number in STOPPING):
        yield
        return
    received, wakes = socket.socketpair()
    wakes.setblocking(False)
    handlers = {number: signal.signal(number, _end) for number in STOPPING}
    wakeup = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    _Ending.others, sys.unraisablehook = sys.unraisablehook, _note_swallowed
    threading.Thread(target=_watch, args=(received, threading.get_ident()), daemon=True, name="signals").start()
    try:
        yield
    finally:
        if _Ending.noted is None:  # else the watch goes on until the process has gone
            sys.unraisablehook = _Ending.others
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            wakes.close()


_TO_THE_END = ExitStack()


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM end this process, as ``ending_on_signals`` says, while Python shuts down too.

    By itself Python would tell a traceback then, and exit with the code 0.
    """
    _TO_THE_END.enter_context(ending_on_signals())


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped for a signal in here, where something must be put in order; the caller catches it."""
    before, _Ending.awaited = _Ending.awaited, True
    try:
        yield
    finally:
        _Ending.awaited = before


@contextmanager
def leaving(words: Callable[[], str]) -> Iterator[None]:
    """Tell the user this as well where a signal ends the process in here: what there is, and how to go on."""
    before, _Ending.left = _Ending.left, words
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.signal, words()) from None
    finally:
        _Ending.left = before


def _forget() -> None:
    """Give a forked process an end of its own: its signals would wake this one's watch."""
    if any(signal.getsignal(number) is _end for number in STOPPING):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = _Ending.others


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def sigint_is_an_answer() -> Iterator[None]:
    """Make SIGINT a KeyboardInterrupt again in here, for a command that people talk to."""
    before = signal.getsignal(signal.SIGINT)
    if before is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tell(stopped: Stopped) -> None:
    """Tell the user of the signal, once, on one process of a machine."""
    if not _Ending.said and os.environ.get("LOCAL_RANK", "0") == "0":
        print(stopped, file=sys.stderr, flush=True)
    _Ending.said = True


def _end(number: int, frame: FrameType | None) -> None:
    """Handle a signal. An exception inside an import may be swallowed there, so the process is left as it is."""
    now = time.monotonic()
    if _Ending.noted is None or _Ending.again:
        _Ending.noted, _Ending.again = now, False
        if _Ending.awaited and not _imports(frame):
            raise Stopped(number)
    elif now - _Ending.noted < SAME:
        return
    _leave(number)


def _note_swallowed(unraisable: sys.UnraisableHookArgs) -> None:
    """Note what comes out of destructors and callbacks, as the hook for such exceptions.

    No call comes after the swallowed signal was noted: no handler runs, and raises, in here any more.
    """
    match unraisable.exc_value:
        case Stopped(signal=number):
            _Ending.again, _Ending.swallowed = True, number
        case KeyboardInterrupt():
            _Ending.swallowed = signal.SIGINT
        case _:
            _Ending.others(unraisable)


def _watch(received: socket.socket, main: int) -> None:
    """Watch for signals outside of the main thread, where Python runs handlers only when C code has come back."""
    ends, stopping = math.inf, 0
    with received:
        while time.monotonic() < ends:
            with suppress(TimeoutError):
                signals = received.recv(1)
                if not signals:
                    return
                received.settimeout(AGAIN)
                if ends == math.inf and signal.getsignal(signals[0]) is _end:
                    ends, stopping = time.monotonic() + GRACE, signals[0]
            swallowed, _Ending.swallowed = _Ending.swallowed, None
            if swallowed is not None:
                _send(swallowed, main)
        _leave(stopping)  # the socket is still open, for the signal that was sent last may wake this thread still


def _send(number: int, thread: int) -> None:
    """Send a signal to a thread, which wakes it up where the system can do that."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(thread, number)


def _leave(number: int) -> None:
    """End the process with everything as it is."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a progress bar has hidden the cursor
    stopped = Stopped(number, _Ending.left())
    tell(stopped)
    os._exit(stopped.exit_code)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
