"""Servers are spoken to over HTTP: requests are shared out over several, bounded, and tried again while one is away."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, TypeVar

import httpx

from local_distill.errors import RunError, UserError
from local_distill.serving.answers import BadAnswerError, message_of, read_reply
from local_distill.serving.endpoints import Endpoint, Endpoints, clean_urls, http_client

T = TypeVar("T")
FIRST_DELAY, LONGEST_DELAY = 0.25, 10.0  # seconds
CONNECT_TIMEOUT = 10.0
"""Seconds: a server that is there accepts a connection at once, however long it then thinks."""
KEEP_CONNECTION = 2.0
"""Seconds that an idle connection is used again: less than after which servers close it themselves (uvicorn: 5)."""
BUSY = (408, 429)
"""Statuses of a server that is there and has no time."""
LONGEST_MESSAGE = 240
"""Characters of a server's own message that are shown."""
PARTING = 2.0
"""Seconds that threads are given to end."""


def as_it_is(answer: Any) -> Any:
    """Return an answer that is read by whoever asked."""
    return answer


class ServerError(RunError):
    """A server did not do what was asked of it; the message names the flag and the address.

    status: the HTTP status of its answer; None where there was no answer, or none that can be used.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _FailedAttemptError(Exception):
    """One attempt failed in a way that may pass."""

    def __init__(self, reason: str, status: int | None = None, wait: float = 0.0, answered: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.wait = wait
        self.answered = answered

    @property
    def lost(self) -> bool:
        """Say whether the server may have stopped; a busy one has not."""
        return self.status not in BUSY


class HttpClient:
    """JSON goes over HTTP to one or several servers that do the same. Safe to use from any thread.

    urls: addresses, with or without ``/v1`` at the end. flag: where they were given, for messages.
    key_variable: name of the environment variable that may hold an API key; the key is shown nowhere.
    timeout: seconds that one request may take. patience: seconds that a request is tried again for after
    it first failed by a lost connection, a time-out, 408, 429, a 5xx, or an answer that is none; the pauses grow, are
    spread by chance, and are as long as the server asks for. concurrency: most requests in flight.
    say: told when a server is lost and when it is back.

    Requests raise ServerError when patience is used up, and at once for any other answer than success.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        flag: str,
        key_variable: str,
        timeout: float,
        patience: float,
        concurrency: int,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.urls = clean_urls(urls, flag)
        self._flag = flag
        self._timeout = timeout
        self._patience = patience
        self._say = say
        self._endpoints = Endpoints(self.urls)
        self._free = threading.BoundedSemaphore(concurrency)
        self._closed = threading.Event()
        self._background = _Background(concurrency, flag.lstrip("-"))
        self._key_variable = key_variable
        self._key = _read_key(key_variable)
        self._http = http_client(
            self.urls,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_CONNECTION),
        )

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        on_lost: Callable[[str], None] | None = None,
        read: Callable[[Any], Any] = as_it_is,
    ) -> Any:
        """Return what the least busy server answers: JSON, or text from one that answers in text.

        on_lost: called with a server's address after its connection was lost or it answered 5xx, before the request
        is tried again, there or elsewhere. read: makes of the answer what is returned; raises BadAnswerError for one
        that is not what was asked for, which is then asked for again.
        """
        return self._request(None, "POST", path, body, read, on_lost)

    def post_to(self, url: str, path: str, body: Mapping[str, Any], read: Callable[[Any], Any] = as_it_is) -> Any:
        """Return what the server at ``url``, one of ``urls``, answers; ``read`` as in ``post``."""
        return self._request(url, "POST", path, body, read)

    def get_from(self, url: str, path: str, read: Callable[[Any], Any] = as_it_is) -> Any:
        """Return what the server at ``url``, one of ``urls``, has at ``path``; ``read`` as in ``post``."""
        return self._request(url, "GET", path, None, read)

    def in_background(self, work: Callable[[], T]) -> Future[T]:
        """Do anything that makes requests of its own on one of ``concurrency`` threads."""
        return self._background.submit(work)

    def close(self) -> None:
        """Give up what is under way and let the connections go."""
        self._closed.set()
        self._background.close()
        self._http.close()

    def _request(
        self, url: str | None, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Any],
        on_lost: Callable[[str], None] | None = None,
    ) -> Any:  # fmt: skip
        first_failure: float | None = None
        attempt = 0
        while True:
            endpoint: Endpoint
            try:
                with self._free, self._endpoints.least_busy(url) as endpoint:
                    answer = self._attempt(endpoint.url, method, path, body, read)
                if self._endpoints.works(endpoint) and self._say:
                    self._say(f"{self._flag} {endpoint.url}: answers again")
                return answer
            except _FailedAttemptError as failure:
                if self._closed.is_set():
                    raise self._error(endpoint.url, path, "given up, the run is over") from None
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                left = first_failure + self._patience - now
                if left <= 0:
                    raise self._gave_up(endpoint.url, path, failure) from None
                delay = min(max(_pause(attempt), failure.wait), left)
                if self._endpoints.fails(endpoint, delay, lost=failure.lost) and self._say:
                    self._say(f"{self._flag} {endpoint.url}: {failure}; tried again for {self._patience:g} s")
                lost, attempt = failure.lost, attempt + 1
            self._closed.wait(0.0 if self._endpoints.any_ready(url) else delay)
            if self._closed.is_set():
                raise self._error(endpoint.url, path, "given up, the run is over")
            if lost and on_lost:
                on_lost(endpoint.url)

    def _attempt(
        self, url: str, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Any]
    ) -> Any:
        """Make one request. Raises _FailedAttemptError where another try may help, ServerError where not."""
        end = time.monotonic() + self._timeout
        try:
            with self._http.stream(method, url + path, json=body) as response:
                parts = []
                for part in response.iter_bytes():  # the time-outs of httpx start again at each part
                    parts.append(part)
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("the answer did not end")
        except httpx.TimeoutException:
            raise _FailedAttemptError(f"no answer within {self._timeout:g} s") from None
        except httpx.RequestError as error:
            raise _FailedAttemptError(self._one_line(str(error) or type(error).__name__)) from None
        except RuntimeError as error:  # what httpx says of a client that was closed meanwhile
            if self._closed.is_set():
                raise _FailedAttemptError("closed") from error
            raise
        content = b"".join(parts)
        if response.is_success:
            try:
                return read(read_reply(content, response.headers.get("content-type", "")))
            except BadAnswerError as error:
                said = self._one_line(f"answered with {error}")
                if error.status is None or _may_pass(error.status):
                    raise _FailedAttemptError(said, error.status, answered=True) from None
                raise self._error(url, path, said, error.status) from None
        said = self._one_line(message_of(content, response.reason_phrase))
        status = response.status_code
        if _may_pass(status):
            raise _FailedAttemptError(f"answered {status} ({said})", status, _retry_after(response))
        if status in (401, 403):
            said += f"; put the server's API key into the environment variable {self._key_variable}"
        raise self._error(url, path, f"answered {status}: {said}", status)

    def _gave_up(self, url: str, path: str, failure: _FailedAttemptError) -> ServerError:
        if failure.answered:
            again = f"asked again for {self._patience:g} s; see the server's own log"
            return ServerError(f"{self._flag} {url}: {failure} ({path}); {again}", failure.status)
        kind = "does not answer" if failure.status is None else "cannot serve"
        return self._error(
            url, path, f"{kind}: {failure}; tried for {self._patience:g} s; see the server's own log, or raise "
            f"--server_patience{' or --server_timeout' if failure.status is None else ''}", failure.status
        )  # fmt: skip

    def _error(self, url: str, path: str, what: str, status: int | None = None) -> ServerError:
        return ServerError(f"{self._flag} {url}: {path} {what}", status)

    def _one_line(self, text: str) -> str:
        """Return the text without the key, should a server repeat it."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


class _Background:
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


def _read_key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip()
    if not key.isprintable() or not key.isascii():
        raise UserError(f"{variable}: holds characters that no API key has; set it again")
    return key or None


def _may_pass(status: int) -> bool:
    return status in BUSY or status >= 500


def _pause(attempt: int) -> float:
    """Return seconds until the next try: doubling, and spread so that many requests do not come back together."""
    longest: float = min(FIRST_DELAY * 2.0**attempt, LONGEST_DELAY)
    return random.uniform(0.5, 1.0) * longest


def _retry_after(response: httpx.Response) -> float:
    """Return seconds that the server asks to be left alone, given in seconds or as a date; 0 when it does not ask."""
    asked = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
