"""A small real HTTP server on this machine that scores with a tiny model, in the words of vLLM or of SGLang.

It can be told to fail, and remembers what it was asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

SCORING = ("/v1/completions", "/generate")
Failure = Callable[["Handler"], None]
"""What is done to a scoring request instead of answering it."""


def status(code: int, message: str = "as told", **headers: str) -> Failure:
    """Answer with an error. headers: with _ for -."""

    def fail(handler: Handler) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.answer({"error": {"message": message}}, code, names)

    return fail


def close_connection(handler: Handler) -> None:
    """As a server does that is killed: after the first bytes of an answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{")
    handler.close_connection = True


def stall(seconds: float) -> Failure:
    """Say nothing for so long, then close."""

    def fail(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return fail


def text(body: str) -> Failure:
    """Answer with success and something that is not JSON."""

    def fail(handler: Handler) -> None:
        handler.answer(body, 200)

    return fail


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    server: ProtocolServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        owner = self.server
        with owner.lock:
            owner.requests.append((self.path, body))
            owner.keys.append(self.headers.get("Authorization"))
            fail = owner.failures.pop(0) if owner.failures and self.path in SCORING else None
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
        try:
            if owner.key is not None and self.headers.get("Authorization") != f"Bearer {owner.key}":
                self.answer({"error": "Unauthorized"}, 401)
            elif fail is not None:
                fail(self)
            elif self.path not in (routes := owner.routes()):
                self.answer({"detail": "Not Found"}, 404)
            else:
                time.sleep(owner.slow if self.path in SCORING else 0)
                self.answer(*routes[self.path](body))
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def answer(self, body: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class ProtocolServer(ThreadingHTTPServer):
    """kind: "vllm" or "sglang". model: a causal LM. key: the API key that it wants. slow: seconds for each score.

    failures: what is done to the next scoring requests. mangle: changes an answer before it is sent.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, model: Any, tokenizer: Any, *, kind: str = "vllm", names: tuple[str, ...] = ("tiny",),
        max_model_len: int = 128, max_logprobs: int = 64, key: str | None = None, slow: float = 0.0, port: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.kind, self.names = model, tokenizer, kind, names
        self.max_model_len, self.max_logprobs, self.key, self.slow = max_model_len, max_logprobs, key, slow
        self.lock = threading.Lock()
        self.requests: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[Failure] = []
        self.connections: list[socket.socket] = []
        self.in_flight = self.most_in_flight = 0
        self.mangle: Callable[[Any], Any] = lambda answer: answer
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def scored(self) -> list[Any]:
        """The scoring requests so far."""
        with self.lock:
            return [body for path, body in self.requests if path in SCORING]

    def stop(self) -> None:
        """As if it were killed: connections that are open end too."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        pass  # clients that went away

    def routes(self) -> dict[str, Callable[[Any], tuple[Any, ...]]]:
        shared = {"/v1/models": self._models, "/tokenize": self._tokenize}
        return shared | ({"/v1/completions": self._vllm} if self.kind == "vllm" else {"/generate": self._sglang})

    def _models(self, _: Any) -> tuple[Any, ...]:
        cards = [{"id": name, "owned_by": self.kind, "max_model_len": self.max_model_len} for name in self.names]
        cards.append({"id": "adapter", "owned_by": self.kind, "max_model_len": None, "parent": self.names[0]})
        return ({"object": "list", "data": cards},)

    def _tokenize(self, body: Any) -> tuple[Any, ...]:
        ids = self.tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
        return ({"tokens": ids, "count": len(ids), "max_model_len": self.max_model_len},)

    @torch.no_grad()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        """(len(ids), V): row t is of the token after t."""
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def _vllm(self, body: Any) -> tuple[Any, ...]:
        ids, k = body["prompt"], body["prompt_logprobs"]
        if body["model"] not in (*self.names, "adapter"):
            return {"error": {"message": f"The model `{body['model']}` does not exist."}}, 404
        if k > self.max_logprobs:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}"
            return {"error": {"message": said, "type": "BadRequestError"}}, 400
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return {"error": {"message": "too long"}}, 400
        entries: list[Any] = [None]
        for row, token in zip(self._logprobs(ids)[:-1], ids[1:], strict=True):
            entry = {str(token): {"logprob": row[token].item(), "rank": int((row > row[token]).sum()) + 1}}
            for rank, i in enumerate(row.topk(k).indices.tolist(), start=1):
                entry.setdefault(str(i), {"logprob": row[i].item(), "rank": rank})
            entries.append(entry)
        return (self.mangle({"choices": [{"index": 0, "text": "", "prompt_logprobs": entries}]}),)

    def _sglang(self, body: Any) -> tuple[Any, ...]:
        ids, k, start = body["input_ids"], body["top_logprobs_num"], body["logprob_start_len"]
        if len(ids) >= self.max_model_len:
            return {"error": {"message": "too long"}}, 400
        logprobs = self._logprobs(ids)
        last = logprobs.shape[1] - 1
        entries: list[Any] = []
        tops: list[Any] = []
        for t in range(start, len(ids)):
            first = t == start
            shown = ids[t] if ids[t] < last else 0
            entries.append([None if first else logprobs[t - 1, ids[t]].item(), shown, None])
            top = logprobs[t - 1].topk(k)
            pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            tops.append(None if first else [[value, i, None] for value, i in pairs])
        meta = {"input_token_logprobs": entries, "output_token_logprobs": []}
        return (self.mangle({"text": "", "meta_info": meta | ({"input_top_logprobs": tops} if k else {})}),)


@contextmanager
def serving(*arguments: Any, **settings: Any):
    """A ProtocolServer that is stopped at the end."""
    server = ProtocolServer(*arguments, **settings)
    try:
        yield server
    finally:
        server.stop()
