"""A small HTTP server that speaks what we use of vLLM's protocol, keeps what it was asked, and can be told to fail."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


class FakeVLLM:
    """Draws ids below ``vocab_size`` by the request's seed, the log-prob of id i is −1 − i/1024.

    asked: (path, body) of every request. before: called with these, may give an answer instead. change: may alter a
    completion. processed: whether log-probs are from after temperature and top-p.
    """

    def __init__(self, vocab_size: int = 300, tokenize: Callable[[str], list[int]] | None = None) -> None:
        self.vocab_size = vocab_size
        self.tokenize = tokenize or (lambda text: list(text.encode()))
        self.asked: list[tuple[str, Any]] = []
        self.before: Callable[[str, Any], Answer | None] = lambda *_: None
        self.change: Callable[[dict[str, Any]], None] = lambda *_: None
        self.processed = True
        self.max_model_len = 64
        self.forget()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def forget(self) -> None:
        """As after a restart."""
        self.adapters: dict[str, str] = {}
        self.weight_version = "default"
        self.loaded: str | None = None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def reply(self, path: str, body: Any) -> Answer:
        self.asked.append((path, body))
        return self.before(path, body) or getattr(self, path.strip("/").replace("/", "_").replace(".", "_"))(body)

    def v1_models(self, _body: Any) -> Answer:
        base = {"id": "base", "max_model_len": self.max_model_len, "parent": None}
        return 200, {"data": [base, *({"id": name, "parent": "base"} for name in self.adapters)]}

    def tokenize_(self, body: Any) -> Answer:
        return 200, {"tokens": self.tokenize(body["prompt"])}

    def v1_load_lora_adapter(self, body: Any) -> Answer:
        if body["lora_name"] in self.adapters:
            return 400, {"error": {"message": "has already been loaded"}}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, "Success"

    def v1_unload_lora_adapter(self, body: Any) -> Answer:
        del self.adapters[body["lora_name"]]
        return 200, "Success"

    def collective_rpc(self, body: Any) -> Answer:
        assert body["method"] == "reload_weights"
        self.loaded = body["kwargs"]["weights_path"]
        return 200, {"results": [None]}

    def update_weight_version(self, body: Any) -> Answer:
        self.weight_version = body["new_version"]
        return 200, {"success": True}

    def weight_info(self, _body: Any) -> Answer:
        return 200, {"weight_version": self.weight_version}

    def v1_completions(self, body: Any) -> Answer:
        if body["model"] != "base" and body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        draw = random.Random(body["seed"])
        bias = body.get("logit_bias", {})
        tokens = [token for token in range(self.vocab_size) if bias.get(str(token), 0.0) > -100.0]
        ids: list[int] = []
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in body["stop_token_ids"]):
            ids.append(tokens[draw.randrange(len(tokens))])
        certain = self.processed and body["top_p"] < 1e-3
        choice = {
            "index": 0,
            "token_ids": ids,
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in ids],
                "token_logprobs": [0.0 if certain else -1.0 - token / 1024 for token in ids],
            },
            "finish_reason": "length",
        }
        self.change(choice)
        return 200, {"choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVLLM
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        path = "/tokenize_" if self.path == "/tokenize" else self.path
        status, answer = self.fake.reply(path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked has given up
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
