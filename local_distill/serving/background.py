"""Work in the background, on threads that never keep a program from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
PARTING = 2.0
"""Seconds that threads are given to end."""


class Background:
    """Work is done on at most ``workers`` threads, started as work comes.

    The threads of concurrent.futures are waited for when Python ends, here up to the time-out of a request that
    nobody wants any more.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._most = workers
        self._name = name
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Promise what ``work()`` will give, or raise; work is begun in the order in which it was submitted."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            self._work.put((future, work))
            if len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
                self._threads[-1].start()
        return future

    def close(self) -> None:
        """Cancel what has not begun; what is under way is waited for only shortly. Harmless when closed already."""
        with self._lock:
            self._closed = True
            while not self._work.empty():
                item = self._work.get()
                if item is not None:
                    item[0].cancel()
            for _ in self._threads:
                self._work.put(None)
        end = time.monotonic() + PARTING
        for thread in self._threads:  # one that wakes up while Python is taken down can bring the process down with it
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # for whoever asks for the result
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del item, future, work
