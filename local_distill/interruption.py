"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Takes the first SIGINT or SIGTERM as a wish to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop; others may not have been."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells and schedulers expect; 0 when the run ended by itself."""
        return 0 if self.signal is None else 128 + self.signal

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        self.restore()
