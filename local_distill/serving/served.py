"""What is behind an address is checked before a run: the right kind of server, one model, the student's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from local_distill.errors import UserError
from local_distill.models.tokenization import PROBES
from local_distill.serving.answers import BadAnswerError, model_cards
from local_distill.serving.client import HttpClient, ServerError
from local_distill.serving.scoring import VLLM, Question, Scores, SGLang, Wire, read_scores

FLAG = "--teacher_url"
SPREAD, ADDED, PER_PROBE = 256, 64, 16
"""Tokens from all over the vocabulary, and of those added to it, that are compared; and how many in one text."""
LONGEST_PROBE = 128
"""Tokens that are scored at the start."""
SAME_MODEL = 0.1
"""Nats, mean absolute: engines of the same weights in bfloat16 differ by half of it, different models by whole nats."""


@dataclass(frozen=True)
class Served:
    """A server names its model so. owner: "vllm" or "sglang"."""

    name: str
    owner: str


def agree_on_wire(
    client: HttpClient, *, model: str | None, tokenizer: PreTrainedTokenizerBase, vocab_size: int, longest: int,
    top_k: int, say: Callable[[str], None],
) -> Wire:  # fmt: skip
    """Find out how to speak to all servers of ``client``; see ``open_server_teacher``."""
    first, served = client.urls[0], {}
    for url in client.urls:
        served[url] = _find_model(client, url, model, longest, say)
        if served[url] != served[first]:
            raise UserError(
                f"{FLAG}: {first} is {served[first].owner} with {served[first].name}, {url} is {served[url].owner} "
                f"with {served[url].name}; start all servers alike"
            )
        _check_tokens(client, url, served[url].name, tokenizer)
    wire: Wire = VLLM(served[first].name) if served[first].owner == "vllm" else SGLang(vocab_size - 1)
    ids = [i for probe in PROBES for i in tokenizer.encode(probe, add_special_tokens=False)]
    ids = ids[: max(2, min(longest, LONGEST_PROBE))]
    question = Question(tuple(ids), len(ids) - 1, top_k)
    scores = {url: _try(client, url, wire, question, vocab_size) for url in client.urls}
    for url in client.urls:
        difference = float((scores[url].logprobs - scores[first].logprobs).abs().mean())
        if difference > SAME_MODEL:
            raise UserError(
                f"{FLAG}: {first} and {url} serve different models: their log-probs of the same text differ by "
                f"{difference:.2g} nats; start all servers with the same one"
            )
    return wire


def _find_model(client: HttpClient, url: str, model: str | None, longest: int, say: Callable[[str], None]) -> Served:
    try:
        cards = {str(card["id"]): card for card in model_cards(client.get_from(url, "/v1/models"))}
    except ServerError as error:
        if error.status != 404:
            raise
        cards = {}
    owner = str(next(iter(cards.values()), {}).get("owned_by"))
    if owner not in ("vllm", "sglang"):
        raise UserError(f"{FLAG} {url}: is no server of vLLM or SGLang (it has no list of models of theirs)")
    names = [name for name, card in cards.items() if owner == "vllm" or not card.get("parent")]
    if model is not None and model not in names:
        raise UserError(
            f"--teacher_model {model}: {url} serves {', '.join(names)}; give one of these names, or none for the first"
        )
    name = names[0] if model is None else model
    # An adapter has its base's length.
    lengths = [cards[name].get("max_model_len"), *(card.get("max_model_len") for card in cards.values())]
    most = next((length for length in lengths if isinstance(length, int)), None)
    if most is None:
        say(f"{FLAG} {url}: does not tell how long a text it takes; it needs to take {longest + 1} tokens")
    elif most < longest + 1:  # neither kind reads without room to write
        option = "--max-model-len" if owner == "vllm" else "--context-length"
        raise UserError(
            f"{FLAG} {url}: takes {most} tokens, prompt and completion may have {longest} and one must be free; start "
            f"it with {option} {longest + 1}, or lower --max_new_tokens or --max_prompt_tokens"
        )
    return Served(name, owner)


def _check_tokens(client: HttpClient, url: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the server makes the student's ids of texts that use tokens from all over."""
    for text in (*PROBES, *_texts_of_tokens(tokenizer)):
        ours = list(tokenizer.encode(text, add_special_tokens=False))
        answer = client.post_to(url, "/tokenize", {"model": name, "prompt": text, "add_special_tokens": False})
        theirs = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(theirs, list):
            raise ServerError(f"{FLAG} {url}: /tokenize answered without tokens; the server is too old, or no server")
        if theirs != ours:
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            here, there = (f"id {ids[at]}" if at < len(ids) else "not there" for ids in (ours, theirs))
            token = tokenizer.decode(ours[at : at + 1])
            raise UserError(
                f"{FLAG} {url}: {name} does not have the student's tokens: {token!r} in a text is {here} to the "
                f"student, {there} there; serve a model of the student's family"
            )


def _texts_of_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Make texts of tokens from all over the vocabulary, and of those that were added to it."""
    known = sorted(tokenizer.get_vocab().values())
    spread = known[:: max(1, len(known) // SPREAD)]
    added = sorted(tokenizer.get_added_vocab().values())
    ids = iter([*spread, *added[: ADDED // 2], *added[-ADDED // 2 :]])
    while part := list(islice(ids, PER_PROBE)):
        yield " ".join(tokenizer.decode([token]) for token in part)


def _try(client: HttpClient, url: str, wire: Wire, question: Question, vocab_size: int) -> Scores:
    """Let one server score a few tokens, all checks included."""
    try:
        answer = client.post_to(url, wire.path, wire.request(question))
    except ServerError as error:
        if error.status == 400 and question.top_k and "logprob" in str(error):
            raise UserError(
                f"--top_k {question.top_k}: {url} gives fewer tokens ({error}); start it with --max-logprobs "
                f"{question.top_k}, or lower --top_k"
            ) from None
        raise
    try:
        return read_scores(wire, answer, question, vocab_size)
    except BadAnswerError as error:
        raise UserError(f"{FLAG} {url}: answered a trial with {error}; serve the teacher with vLLM or SGLang") from None
