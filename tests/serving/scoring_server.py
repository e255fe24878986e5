"""A small HTTP server that scores with a real model, in vLLM's words or in SGLang's, and can be told to fail."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Answer = tuple[int, Any, dict[str, str]]


class ScoringServer:
    """asked: (path, body, headers) of every request. most_busy: most that were under way at once.

    before: called with path and body first; an answer, or an exception to close the connection with, may come of it.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, kind: str = "vllm", max_model_len: int = 128) -> None:
        self.model, self.tokenizer, self.kind, self.max_model_len = model, tokenizer, kind, max_model_len
        self.max_logprobs = 20
        self.asked: list[tuple[str, Any, Any]] = []
        self.before: Callable[[str, Any], Answer | None] = lambda *_: None
        self.change: Callable[[Any], None] = lambda _: None
        self.delay = 0.0
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def scored(self) -> int:
        """Requests for scores so far, the probe at the start included."""
        return sum(path in ("/v1/completions", "/generate") for path, _, _ in self.asked)

    def reply(self, path: str, body: Any, headers: Any) -> Answer:
        with self.lock:
            self.asked.append((path, body, headers))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            time.sleep(self.delay)
            forced = self.before(path, body)
            return forced or (*getattr(self, path.strip("/").replace("/", "_"))(body), {})
        finally:
            with self.lock:
                self.busy -= 1

    def v1_models(self, _: Any) -> tuple[int, Any]:
        return 200, {"data": [{"id": "teacher", "owned_by": self.kind, "max_model_len": self.max_model_len}]}

    def tokenize(self, body: Any) -> tuple[int, Any]:
        return 200, {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}

    @torch.no_grad()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def v1_completions(self, body: Any) -> tuple[int, Any]:
        k, ids = body["prompt_logprobs"], body["prompt"]
        if k > self.max_logprobs:
            return 400, {"error": {"message": f"Requested prompt logprobs of {k}, which is greater than max allowed"}}
        logprobs = self._logprobs(ids)
        entries: list[Any] = [None]
        for t in range(1, len(ids)):
            tokens = {*logprobs[t - 1].topk(k).indices.tolist(), ids[t]}
            entries.append({str(i): {"logprob": logprobs[t - 1, i].item()} for i in sorted(tokens)})
        answer = {"choices": [{"text": "x", "prompt_logprobs": entries}]}
        self.change(answer)
        return 200, answer

    def generate(self, body: Any) -> tuple[int, Any]:
        start, k, ids = body["logprob_start_len"], body["top_logprobs_num"], body["input_ids"]
        logprobs = self._logprobs(ids)
        rows: list[Any] = [[None, ids[start], None]]
        top: list[Any] = [None]
        for t in range(start + 1, len(ids)):
            rows.append([logprobs[t - 1, ids[t]].item(), ids[t], None])
            best = logprobs[t - 1].topk(k)
            top.append([[v, i, None] for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)])
        answer = {"text": "x", "meta_info": {"input_token_logprobs": rows, "input_top_logprobs": top if k else None}}
        self.change(answer)
        return 200, answer


class _Handler(BaseHTTPRequestHandler):
    server_of: ScoringServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        try:
            status, answer, headers = self.server_of.reply(self.path, body, dict(self.headers))
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()
            return
        content = json.dumps(answer).encode()
        with contextlib.suppress(ConnectionError, BrokenPipeError):  # who asked has given up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
