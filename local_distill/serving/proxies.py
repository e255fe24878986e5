"""Which proxy leads to a server, by the environment's variables; to this machine itself, none."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from ssl import SSLContext
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from local_distill.errors import UserError
from local_distill.runs.environment import masked


def http_client(
    urls: Sequence[str], *, headers: dict[str, str], timeout: httpx.Timeout, limits: httpx.Limits
) -> httpx.Client:
    """A client for these servers. Raises UserError naming the variable where a proxy that leads to one is no proxy.

    httpx by itself makes all proxies that are set, those as well that lead to none of the servers.
    """
    context = httpx.create_ssl_context()
    mounts = {f"all://{urlsplit(url).netloc}": _transport(url, context, limits) for url in urls}
    return httpx.Client(headers=headers, timeout=timeout, limits=limits, verify=context, trust_env=False, mounts=mounts)


def _transport(url: str, context: SSLContext, limits: httpx.Limits) -> httpx.HTTPTransport | None:
    """Through the proxy that leads to ``url``; None where there is none."""
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
            f"{name}: {masked(given)} cannot be used as the proxy to {url} ({' '.join(str(error).split())}); put it "
            f"right, unset it, or add {host} to NO_PROXY"
        ) from error


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is the loopback interface's, by the text alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
