"""Which of several servers is asked next, and by what way: through a proxy of the environment's, or none."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from local_distill.errors import UserError, one_line
from local_distill.passwords import without_passwords


@dataclass
class Endpoint:
    """A server has an address. busy: requests under way there. asked: so far. rests_until: when it may be back."""

    url: str
    busy: int = 0
    asked: int = 0
    rests_until: float = 0.0
    lost: bool = False


class Endpoints:
    """Several servers do the same, and are counted as busy or lost. Safe to use from any thread."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._all = [Endpoint(url) for url in urls]
        self._lock = threading.Lock()

    @contextmanager
    def least_busy(self, url: str | None) -> Iterator[Endpoint]:
        """Return the server to ask now, the one at ``url`` if it is given: one that failed just before if all did."""
        with self._lock:
            now = time.monotonic()
            best = min(self._among(url), key=lambda each: (each.rests_until > now, each.busy, each.asked))
            best.busy += 1
            best.asked += 1
        try:
            yield best
        finally:
            with self._lock:
                best.busy -= 1

    def fails(self, endpoint: Endpoint, rest: float, *, lost: bool) -> bool:
        """Note that ``endpoint`` failed and is spared for ``rest`` seconds; whether it is news that it is lost."""
        with self._lock:
            news = lost and not endpoint.lost
            endpoint.lost |= lost
            endpoint.rests_until = time.monotonic() + rest
            return news

    def works(self, endpoint: Endpoint) -> bool:
        """Note that ``endpoint`` answered; whether that is news, for it was lost."""
        with self._lock:
            news, endpoint.lost, endpoint.rests_until = endpoint.lost, False, 0.0
            return news

    def any_ready(self, url: str | None) -> bool:
        """Say whether one of them, or the one at ``url``, did not fail just before."""
        with self._lock:
            now = time.monotonic()
            return any(each.rests_until <= now for each in self._among(url))

    def _among(self, url: str | None) -> list[Endpoint]:
        return [each for each in self._all if url in (None, each.url)]


def clean_urls(urls: Sequence[str], flag: str) -> tuple[str, ...]:
    """Return the addresses without blanks, a slash or ``/v1`` at the end. Raises UserError for what is no address."""
    cleaned = []
    for given in (url.strip() for url in urls):
        if "@" in given:
            raise UserError(f"{flag}: an address of it holds a password, which would be shown; leave it out there")
        try:
            parts = urlsplit(given)
            bad = parts.scheme not in ("http", "https") or not parts.hostname or bool(parts.query or parts.fragment)
            bad |= parts.port == 0  # raises for what is no number
        except ValueError:
            bad = True
        if bad:
            raise UserError(f"{flag}: {given!r} is no address of a server; give it as http://host:port")
        url = given.rstrip("/").removesuffix("/v1").rstrip("/")
        if url in cleaned:
            raise UserError(f"{flag}: {url} is given twice; name each server once")
        cleaned.append(url)
    if not cleaned:
        raise UserError(f"{flag}: no address given; give it as http://host:port")
    return tuple(cleaned)


def http_client(
    urls: Sequence[str], *, headers: dict[str, str], timeout: httpx.Timeout, limits: httpx.Limits
) -> httpx.Client:
    """Return a client for these servers. Raises UserError naming the variable where what leads to one is no proxy.

    httpx by itself makes all proxies that are set, those as well that lead to none of the servers.
    """
    context = httpx.create_ssl_context()
    mounts = {f"all://{urlsplit(url).netloc}": _transport(url, context, limits) for url in urls}
    return httpx.Client(headers=headers, timeout=timeout, limits=limits, verify=context, trust_env=False, mounts=mounts)


def _transport(url: str, context: SSLContext, limits: httpx.Limits) -> httpx.HTTPTransport | None:
    """Return the way through the proxy that leads to ``url``; None where there is none, as to this machine itself."""
    parts = urlsplit(url)
    host, known = parts.hostname or "", getproxies()
    scheme = next((name for name in (parts.scheme, "all") if known.get(name)), None)
    if scheme is None or is_this_machine(host) or proxy_bypass(parts.netloc):
        return None
    given = known[scheme]
    try:
        proxy = httpx.Proxy(given if "://" in given else f"http://{given}")
        if not re.fullmatch(r"[\w.:-]+", proxy.url.host):
            raise ValueError("it names no host")
        return httpx.HTTPTransport(verify=context, limits=limits, proxy=proxy)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        name = next((n for n in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()) if os.environ.get(n)), f"{scheme} proxy")
        raise UserError(
            f"{name}: {without_passwords(given)} cannot be used as the proxy to {url} ({one_line(error)}); put it "
            f"right, unset it, or add {host} to NO_PROXY"
        ) from error


def is_this_machine(host: str) -> bool:
    """Say whether a host's name or address is the loopback interface's, by the text alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
