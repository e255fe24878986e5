"""The page of runs that go on, served to this machine alone.

Two addresses: / is the page, /changes?PART=VERSION&… tells which of its parts are others by now, and those parts.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from local_distill import __version__
from local_distill.errors import UserError, with_type
from local_distill.report.following import FollowedRun
from local_distill.report.page import CURVES, TOKENS, assemble, curves_json, markup_of, samples_of, title_of
from local_distill.report.reading import ReportedRun

LOOPBACK = "127.0.0.1"
OURS = ("127.0.0.1", "localhost", "[::1]")
"""Hosts by which a browser on this machine, or at the other end of an ssh tunnel, calls this server.

Any other name was made to point here by somebody whose page would then read this one (DNS rebinding).
"""


class WatchedPage:
    """The page about some runs is kept as it is now; a look at runs that have not changed costs a few calls of stat."""

    def __init__(self, followed: Sequence[FollowedRun]) -> None:
        self._followed = followed
        self._lock = threading.Lock()  # several windows ask at a time
        self._runs: list[ReportedRun] = []
        self._parts: dict[str, str] = {}
        self._versions: dict[str, str] = {}

    def html(self) -> str:
        """Return the whole page."""
        with self._lock:
            self._look()
            return assemble(title_of(self._runs), self._parts, self._versions)

    def changes(self, known: Mapping[str, str]) -> str:
        """Return as JSON the parts whose version is not the known one. known: versions by the names of parts.

        {"versions": {part: version}, "markup": {part: html}, "json": {part: data}, "goes_on": …, "age": seconds}
        """
        with self._lock:
            self._look()
            other = {name: version for name, version in self._versions.items() if known.get(name) != version}
            markup = {name: self._parts[name] for name in other if name not in (CURVES, TOKENS)}
            drawn = ",".join(f'"{name}":{self._parts[name]}' for name in other if name in (CURVES, TOKENS))
            ages = [age for each in self._followed if (age := each.age) is not None]
            facts = {
                "versions": other,
                "markup": markup,
                "goes_on": any(run.goes_on for run in self._runs),
                "age": min(ages, default=None),
            }
        return f'{json.dumps(facts)[:-1]},"json":{{{drawn}}}}}'

    def _look(self) -> None:
        runs = [each.look() for each in self._followed]
        if _same(runs, self._runs):
            return
        parts = {**self._parts, **markup_of(runs), CURVES: curves_json(runs)}
        if not _same(_of_samples(runs), _of_samples(self._runs)) or not self._runs:
            parts |= samples_of(runs)
        self._runs, self._parts = runs, parts
        self._versions = {name: hashlib.sha256(part.encode()).hexdigest()[:16] for name, part in parts.items()}


def _of_samples(runs: Sequence[ReportedRun]) -> list[Any]:
    """Return all that the parts about completions are made of, besides the names of the runs."""
    return [each for run in runs for each in (run.path, run.is_open, *run.samples)]


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


class PageServer(ThreadingTCPServer):
    """A server on the loopback address, once it was made. port: 0 takes any that is free.

    Raises UserError where it cannot have the port.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would share a port that is in use

    def __init__(self, page: WatchedPage, port: int) -> None:
        self.page = page
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OverflowError as error:
            raise _no_port(port, "not a port") from error
        except OSError as error:
            why = "in use by another program" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise _no_port(port, why) from error

    @property
    def port(self) -> int:
        """Return the port, whichever it was given."""
        port: int = self.socket.getsockname()[1]
        return port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a browser go that has gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _no_port(port: int, why: str) -> UserError:
    return UserError(f"--port {port}: {why}; give another, or 0 for any that is free")


class _Handler(BaseHTTPRequestHandler):
    """Answers of GET and HEAD; all other methods are refused by the library."""

    server: PageServer
    server_version = f"local-distill/{__version__}"
    sys_version = ""
    timeout = 60  # seconds for a browser that connects and says nothing

    def do_GET(self) -> None:
        """Answer with the page, or with what has changed of it."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in OURS and host not in OURS:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", f"this server is called {OURS[0]} or {OURS[1]}")
            return
        address = urlsplit(self.path)
        try:
            if address.path == "/":
                self._answer(HTTPStatus.OK, "text/html", self.server.page.html())
            elif address.path == "/changes":
                known = dict(parse_qsl(address.query))
                self._answer(HTTPStatus.OK, "application/json", self.server.page.changes(known))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "nothing here; the page is /")
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # the watch goes on, and the page says so
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", with_type(error))

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        zipped = "gzip" in self.headers.get("Accept-Encoding", "")
        if zipped:
            content = gzip.compress(content, compresslevel=1)
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def open_server(runs: Sequence[tuple[Path, str]], port: int) -> PageServer:
    """Return a server of the page about these folders, by their names. Raises UserError."""
    return PageServer(WatchedPage([FollowedRun(folder, name) for folder, name in runs]), port)
