"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from accelerate import Accelerator

from local_distill.process.distributed import reduce_max
from local_distill.process.signals import SAME, STOPPING


class StopRequest:
    """The first SIGINT or SIGTERM is a wish to stop after the step; another one, later, stops at once.

    Python hands signals to its main thread alone: in any other, nothing is taken.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted = 0.0
        heeded = STOPPING if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in heeded}

    @property
    def requested(self) -> bool:
        """Return whether this process was asked to stop; others may not have been."""
        return self.signal is not None

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether any process was asked to stop; from here on all of them were. Collective."""
        number = reduce_max(accelerator, int(self.signal or 0))
        if number:
            self.signal = signal.Signals(number)
        return number > 0

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._noted > SAME:
            self.restore()
            signal.raise_signal(number)
