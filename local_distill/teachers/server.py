"""A teacher behind vLLM or SGLang servers: token ids go there, their log-probs come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from local_distill.errors import UserError
from local_distill.logprobs import TopTokens
from local_distill.serving.client import HttpClient, ServerError
from local_distill.serving.scoring import VLLM, BadAnswerError, Scored, SGLang, Wire
from local_distill.tokenization import PROBES
from local_distill.types import Rollout, ScoredBatch, TokenBatch

FLAG = "--teacher_url"
KEY_VARIABLE = "LOCAL_DISTILL_TEACHER_API_KEY"
SAME_MODEL = 0.1
"""Mean absolute difference in nats, on a probe, above which two servers do not serve the same model: the same one in
bf16 differs from itself by half of it."""

MOST_MASS = 1 - 1e-7
"""Of the likeliest tokens together: what float32 can tell from one."""

Row = tuple[tuple[int, ...], int]
"""The ids of a prompt and its completion, and how many of them are the completion."""


class ServerTeacher:
    """Scores each rollout with a request of its own, from the moment that it is finished.

    wire: how the servers are asked. model: the name to ask for. vocab_size: tokens that student and teacher share.
    top_k: likeliest tokens that are wanted as well; 0 for none.
    """

    def __init__(
        self, client: HttpClient, wire: Wire, *, model: str, device: torch.device, vocab_size: int, top_k: int
    ) -> None:
        self._client = client
        self._wire = wire
        self._model = model
        self._device = device
        self._vocab_size = vocab_size
        self._top_k = top_k
        self._begun: dict[Row, Future[Scored]] = {}
        self._lock = threading.Lock()

    def prepare(self, rollout: Rollout) -> None:
        """Begin with this one. See Teacher."""
        completion = rollout.completion.tolist()
        if completion:
            self._begin((*rollout.prompt.ids, *completion), len(completion))

    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher. Raises ServerError when a rollout cannot be scored within the client's patience."""
        rows = [row for row in rows_of(batch) if row[1]]
        futures = [self._begin(*row) for row in rows]
        try:
            scored = [future.result() for future in futures]
        finally:
            with self._lock:
                for row in rows:
                    self._begun.pop(row, None)
        logprobs = torch.tensor([each for one in scored for each in one.logprobs], dtype=torch.float32)
        top = self._top_tokens(scored) if self._top_k else None
        return ScoredBatch(batch.to(self._device), logprobs.to(self._device), top=top)

    def close(self) -> None:
        """Give up what is under way."""
        self._client.close()

    def _begin(self, ids: tuple[int, ...], completion: int) -> Future[Scored]:
        """The request for one row, made once."""
        with self._lock:
            if (ids, completion) not in self._begun:
                self._begun[ids, completion] = self._client.in_background(lambda: self._score(ids, completion))
            return self._begun[ids, completion]

    def _score(self, ids: tuple[int, ...], completion: int) -> Scored:
        body = self._wire.request(self._model, ids, completion, self._top_k)
        answer = self._client.post(self._wire.path, body)
        try:
            scored = self._wire.read(answer, ids, completion, self._top_k)
            self._check_ids(scored)
        except BadAnswerError as error:
            raise ServerError(f"{FLAG}: a server's answer to {self._wire.path} has {error}; see its log") from None
        return scored

    def _check_ids(self, scored: Scored) -> None:
        for row in scored.top:
            for token, _ in row:
                if not 0 <= token < self._vocab_size:
                    raise BadAnswerError(
                        f"token {token} among the {self._top_k} likeliest, and student and teacher share "
                        f"{self._vocab_size} (a lower --top_k may leave it out)"
                    )

    def _top_tokens(self, scored: Sequence[Scored]) -> TopTokens:
        rows = [row for one in scored for row in one.top]
        ids = torch.tensor([[token for token, _ in row] for row in rows], dtype=torch.long).reshape(-1, self._top_k)
        logprobs = torch.tensor([[each for _, each in row] for row in rows], dtype=torch.float64).reshape_as(ids)
        # The server's rounding may bring the sum to one, or above it.
        others = torch.log1p(-logprobs.exp().sum(1).clamp(max=MOST_MASS))
        with_others = torch.cat([logprobs, others[:, None]], dim=1).float()
        return TopTokens(ids.to(self._device), with_others.to(self._device))


def rows_of(batch: TokenBatch) -> list[Row]:
    """The ids of each row without its padding, by length and not by id: padding may be a stop token."""
    lengths = batch.attention_mask.sum(1).tolist()
    rows = zip(batch.input_ids.tolist(), lengths, batch.lengths, strict=True)
    return [(tuple(ids[:length]), completion) for ids, length, completion in rows]


def open_server_teacher(
    urls: Sequence[str], *, model: str | None, student_tokenizer: PreTrainedTokenizerBase, vocab_size: int,
    longest: int, top_k: int, device: torch.device, timeout: float, patience: float, concurrency: int,
    say: Callable[[str], None],
) -> ServerTeacher:  # fmt: skip
    """Ask every server what it serves, and whether it can teach this student.

    model: the name to ask for; None for the first that is served. longest: tokens of prompt and completion together.
    Raises UserError when one is not there, serves another model or vocabulary, or gives too little.
    """
    client = HttpClient(
        urls, flag=FLAG, key_variable=KEY_VARIABLE, timeout=timeout, patience=patience, concurrency=concurrency, say=say
    )
    try:
        opened = [_open_one(client, url, model, student_tokenizer, longest, top_k) for url in client.urls]
        _check_same(client, opened)
    except BaseException:
        client.close()
        raise
    wire, name, _ = opened[0]
    return ServerTeacher(client, wire, model=name, device=device, vocab_size=vocab_size, top_k=top_k)


def _open_one(
    client: HttpClient, url: str, model: str | None, tokenizer: PreTrainedTokenizerBase, longest: int, top_k: int
) -> tuple[Wire, str, Scored]:
    """How to ask the server at ``url``, for what, and its scores of a probe."""
    cards = client.get_from(url, "/v1/models")
    served = cards.get("data") if isinstance(cards, dict) else None
    if not isinstance(served, list) or not served:
        raise UserError(f"{FLAG} {url}: serves no model; give the address of a vLLM or SGLang server")
    card = next((each for each in served if model in (None, each["id"])), None)
    if card is None:
        names = ", ".join(each["id"] for each in served)
        raise UserError(f"--teacher_model {model}: {url} serves {names}; give one of these names, or none")
    length = card.get("max_model_len")
    if length is not None and length < longest + 1:
        raise UserError(
            f"{FLAG} {url}: takes {length} tokens, a prompt and its completion may have {longest} and one more is "
            f"needed; start it with --max-model-len {longest + 1}, or lower --max_new_tokens or --max_prompt_tokens"
        )
    _check_tokens(client, url, card["id"], tokenizer)
    wire: Wire = SGLang() if card.get("owned_by") == "sglang" else VLLM()
    return wire, card["id"], _score_probe(client, url, wire, card["id"], tokenizer, top_k)


def _check_tokens(client: HttpClient, url: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for probe in PROBES:
        answer = client.post_to(url, "/tokenize", {"model": name, "prompt": probe, "add_special_tokens": False})
        theirs = answer.get("tokens") if isinstance(answer, dict) else None
        if theirs != tokenizer.encode(probe, add_special_tokens=False):
            raise UserError(
                f"{FLAG} {url}: {name} splits text into other tokens than the student ({probe[:24]!r}); serve a "
                "teacher of the student's family"
            )


def _score_probe(
    client: HttpClient, url: str, wire: Wire, name: str, tokenizer: PreTrainedTokenizerBase, top_k: int
) -> Scored:
    ids: list[int] = tokenizer.encode(PROBES[0], add_special_tokens=False)
    completion = len(ids) - 1
    try:
        answer: Any = client.post_to(url, wire.path, wire.request(name, ids, completion, top_k))
        return wire.read(answer, ids, completion, top_k)
    except BadAnswerError as error:
        raise UserError(f"{FLAG} {url}: cannot be used as a teacher, its answer to {wire.path} has {error}") from None
    except ServerError as error:
        if top_k and error.status is not None and error.status < 500:
            raise UserError(
                f"{error}; if that is about --top_k {top_k}, start the server with --max-logprobs {top_k}, or lower it"
            ) from None
        raise


def _check_same(client: HttpClient, opened: Sequence[tuple[Wire, str, Scored]]) -> None:
    first = torch.tensor(opened[0][2].logprobs)
    for url, (_, name, scored) in zip(client.urls, opened, strict=True):
        difference = (torch.tensor(scored.logprobs) - first).abs().mean().item()
        if name != opened[0][1] or difference > SAME_MODEL:
            raise UserError(
                f"{FLAG}: {client.urls[0]} and {url} do not serve the same model ({opened[0][1]} and {name}, "
                f"{difference:.2g} nats a token apart on a probe); give servers of one model alone"
            )
