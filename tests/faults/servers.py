"""A faulty server in front of the teacher's and of the sampler's: it forwards what it is asked, or fails on the way."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fake_vllm import FakeVLLM
from tests.faults.processes import Service
from tests.faults.site import STEPS, Site
from tests.launching import metrics
from tests.serving.protocol_server import ProtocolServer

OFTEN = 0.25
"""The share of requests that meet a fault; each is tried again."""
OF_WORK = ("/v1/completions", "/generate")


class Front(ThreadingHTTPServer):
    """Forwards to ``upstream``; of the requests for work, every so manieth fails in the way named."""

    daemon_threads = True

    def __init__(self, upstream: str, fault: str, seed: int, always: bool) -> None:
        self.upstream, self.fault = upstream, fault
        self._draw, self._lock, self._always = random.Random(seed), threading.Lock(), always
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def fails_now(self) -> bool:
        """Whether this request meets the fault."""
        with self._lock:
            return self._always or self._draw.random() < OFTEN


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Front

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, body: bytes | None) -> None:
        asked = urllib.request.Request(self.server.upstream + self.path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        with contextlib.suppress(ConnectionError):  # who asked has given up
            if self.path in OF_WORK and status == 200 and self.server.fails_now():
                FAULTS[self.server.fault](self, content)
            else:
                self.answer(status, content)

    def answer(self, status: int, content: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def reset(handler: Handler, content: bytes) -> None:
    """The connection is torn down."""
    del content
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def half(handler: Handler, content: bytes) -> None:
    """Less than was announced, then the end."""
    handler.answer(200, content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def late(handler: Handler, content: bytes) -> None:
    """Right, after a while."""
    time.sleep(0.2)
    handler.answer(200, content)


def other_ids(handler: Handler, content: bytes) -> None:
    """A completion whose tokens are not those that its log-probs stand beside; scores of other tokens."""
    answer = json.loads(content)
    (choice,) = answer["choices"]
    if "prompt_logprobs" in choice:
        choice["prompt_logprobs"] = [
            entry and {str(int(i) + 1): value for i, value in entry.items()} for entry in choice["prompt_logprobs"]
        ]
    else:
        choice["token_ids"] = [i + 1 for i in choice["token_ids"]]
    handler.answer(200, json.dumps(answer).encode())


def said(status: int, body: str, kind: str = "application/json") -> Callable[[Handler, bytes], None]:
    """This instead."""
    return lambda handler, _: handler.answer(status, body.encode(), kind)


FAULTS: dict[str, Callable[[Handler, bytes], None]] = {
    "delays": late,
    "resets": reset,
    "half answers": half,
    "429": said(429, '{"error": {"message": "too many"}}'),
    "500": said(500, '{"error": {"message": "engine"}}'),
    "503": said(503, "busy", "text/plain"),
    "wrong ids": other_ids,
    "200 with an error": said(200, '{"object": "error", "message": "engine is dead"}'),
    "200 with a web page": said(200, "<html><title>log in</title>", "text/html"),
    "200 with nothing": said(200, ""),
    "200 with half of JSON": said(200, '{"choices": [{"index"'),
    "200 with other JSON": said(200, '{"choices": [{"index": "x", "token_ids": {}, "logprobs": 3}]}'),
}


FOR_EVER = ("resets", "500", "wrong ids", "200 with an error", "200 with a web page", "200 with other JSON")
"""Faults that do not pass, one of each kind."""


def teacher(site: Site) -> Callable[[], str]:
    """A server that scores as the local teacher does."""

    def serve() -> str:
        torch.set_num_threads(1)
        folder = site.models[3]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return ProtocolServer(model, AutoTokenizer.from_pretrained(folder)).url

    return serve


def sampler(site: Site) -> Callable[[], str]:
    """A server that draws by the request's seed alone."""

    def serve() -> str:
        tokenizer = AutoTokenizer.from_pretrained(site.models[1])
        server = FakeVLLM(tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False))
        server.max_model_len = 128
        return server.url

    return serve


def faulty_servers(site: Site) -> None:
    """Each fault in front of either server: now and then, and the run is that of a server without; always, one line."""
    for role, serve in {"teacher": teacher(site), "sampler": sampler(site)}.items():
        with Service(serve, site.folder) as server:
            right = _run(site, role, server.url, None, patience="20")
            for fault in FAULTS:
                found = _run(site, role, server.url, fault, patience="20")
                differs = found is not None and found != right
                if right is None or found is None:
                    continue
                site.tally.add(f"server of the {role}, now and then", fault, mismatches=differs)
            for fault in (
                "resets",
                "500",
                "wrong ids",
                "200 with an error",
                "200 with a web page",
                "200 with other JSON",
            ):
                _run(site, role, server.url, fault, patience="1", always=True)


def _run(
    site: Site, role: str, url: str, fault: str | None, *, patience: str, always: bool = False
) -> list[dict[str, float]] | None:
    """The numbers of a short run on that server; None where it did not end well."""
    run = site.new()
    seed = site.rng.randrange(2**32)
    with Service(lambda: f"http://127.0.0.1:{Front(url, fault, seed, always).server_port}" if fault else url,
                 run.parent) as front:  # fmt: skip
        flag = ["--teacher_url", front.url] if role == "teacher" else ["--rollouts_url", front.url]
        words = ["--server_patience", patience, "--server_timeout", "10", *flag]
        # What the sampler says that it drew with is made up, which stops a run of one update a step.
        words += ["--teacher_model", "tiny"] if role == "teacher" else ["--num_substeps", "2"]
        ended = site.train(run, *words, steps=STEPS // 2).wait()
    if fault:
        row = f"server of the {role}, {'always' if always else 'now and then'}"
        as_it_should = ended.in_one_line if always else ended.code == 0
        site.tally.add(
            row, f"{fault}: {ended.code} {ended.err[-900:]}", faults=1, went_on=ended.code == 0,
            one_line=ended.in_one_line, tracebacks=ended.tracebacks, otherwise=not as_it_should,
        )  # fmt: skip
    else:
        assert ended.code == 0, ended.err
    return metrics(run) if ended.code == 0 else None
