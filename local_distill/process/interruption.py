"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

from local_distill.process.distributed import reduce_max
from local_distill.process.signals import SAME, STOPPING

SAME_KEY = 0.3
"""Seconds within which a second Ctrl-C is the first one again, where nobody but the terminal sends it."""
SENDERS = ("LOCAL_RANK", "SLURM_JOB_ID")
"""Variables of launchers and schedulers, which send on what the terminal has sent already."""


class GivenUp(Exception):  # noqa: N818 (nothing is wrong)
    """Work that changes nothing was left where it was, for the process was asked to stop."""


class StopRequest:
    """The first SIGINT or SIGTERM is a wish to stop after the step; another one, later, stops at once.

    Python hands signals to its main thread alone: in any other, nothing is taken.

    notice: tells people in one line, from within the handler. heeded: whether all processes know of it.
    """

    def __init__(self, notice: Callable[[str], None] = lambda _: None) -> None:
        self.signal: signal.Signals | None = None
        self.heeded = False
        self._notice = notice
        self._answer = "stopping after what is under way"
        self._noted = 0.0
        heeded = STOPPING if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in heeded}

    @property
    def requested(self) -> bool:
        """Return whether this process was asked to stop; others may not have been."""
        return self.signal is not None

    def answers(self, answer: str) -> None:
        """Have a signal answered with this from now on: what is done before the run stops."""
        self._answer = answer

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether any process was asked to stop; from here on all of them were. Collective."""
        number = reduce_max(accelerator, int(self.signal or 0))
        if number:
            self.signal, self.heeded = signal.Signals(number), True
        return number > 0

    @contextmanager
    def giving_up(self) -> Iterator[None]:
        """Let ``give_up_if_asked`` raise GivenUp in here once a signal has come: nothing in here is to be kept."""
        before, _Watched.request = _Watched.request, self
        try:
            yield
        finally:
            _Watched.request = before

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()
            again = "Ctrl-C" if number == signal.SIGINT else self.signal.name
            self._notice(f"{self._answer}; {again} again to quit now")
        elif time.monotonic() - self._noted > _same(number):
            self.restore()
            signal.raise_signal(number)


class NeverStopped(StopRequest):
    """Nobody asks for a stop here: no signal is taken."""

    def __init__(self) -> None:
        self.signal, self.heeded = None, False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return that nobody was asked to stop."""
        del accelerator
        return False


class _Watched:
    """request: by which work may be given up now."""

    request: StopRequest | None = None


def give_up_if_asked() -> None:
    """Raise GivenUp within ``StopRequest.giving_up`` if this process was asked to stop; costs nothing anywhere else."""
    if _Watched.request is not None and _Watched.request.requested:
        raise GivenUp


def _same(number: int) -> float:
    """Return the seconds within which a signal is the one that came before."""
    alone = number == signal.SIGINT and not any(name in os.environ for name in SENDERS)
    return min(SAME, SAME_KEY) if alone else SAME
