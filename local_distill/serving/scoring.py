"""How servers are asked for the log-probs of tokens that they are given: the words of vLLM and of SGLang.

Pure functions of requests and answers. Ids go in, never text, so that no server adds tokens of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from local_distill.head.logprobs import TopTokens
from local_distill.serving.answers import BadAnswerError

NO_PROBABILITY = -9999.0
"""What vLLM writes for a log-prob of minus infinity, which JSON does not have."""
ROUNDING = 1e-3
"""Nats by which a log-prob of a certain token may come out above 0."""

LEAST_REST = 1e-7
"""Of probability, left to the tokens that a server did not name: what float32 can tell from nothing."""


@dataclass(frozen=True)
class Question:
    """A server is asked to score the last ``completion`` of ``ids``, prompt and completion, of which some is prompt.

    top_k: how many of the likeliest tokens are wanted at each of these positions as well.
    """

    ids: tuple[int, ...]
    completion: int
    top_k: int = 0

    @property
    def targets(self) -> tuple[int, ...]:
        """Return the tokens to score."""
        return self.ids[-self.completion :]


class Scores(NamedTuple):
    """Scores are logprobs: (T,) float32 nats of the T tokens asked for, temperature 1; and top, where asked for."""

    logprobs: Tensor
    top: TopTokens | None


class Position(NamedTuple):
    """A server says this of one token. logprob: of the one asked for. others: (id, logprob), likely ones among them."""

    logprob: Any
    others: Sequence[tuple[int, Any]]


@dataclass(frozen=True)
class VLLM:
    """vLLM's completions have ``prompt_logprobs``: entry t, by id as text, is of token t given all before it.

    Entry 0 is null. With k the token itself comes besides the k likeliest. model: the name that it is served by.
    """

    model: str
    path: str = "/v1/completions"

    def request(self, question: Question) -> dict[str, Any]:
        """Return the body of the request to ``path``; vLLM will not read without writing one token."""
        return {
            "model": self.model,
            "prompt": list(question.ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": question.top_k,
        }

    def positions(self, answer: Any, question: Question) -> list[Position]:
        """Return what the answer says of each token asked for; another answer raises, see ``read_scores``."""
        (choice,) = answer["choices"]
        entries = choice["prompt_logprobs"]
        _expect(len(entries), len(question.ids), "entries")
        _expect(entries[0], None, "as the first entry")
        scored = entries[-question.completion :]
        return [
            Position(entry[str(target)]["logprob"], [(int(i), each["logprob"]) for i, each in entry.items()])
            for target, entry in zip(question.targets, scored, strict=True)
        ]


@dataclass(frozen=True)
class SGLang:
    """SGLang has its own route. Entries are [logprob, id, text] and start at ``logprob_start_len``.

    The first of them is null whatever comes before it, so one token more is asked for than is scored.
    last_id: of the vocabulary; it comes back as 0, as any id does from the last of the server's vocabulary on.
    """

    last_id: int
    path: str = "/generate"

    def request(self, question: Question) -> dict[str, Any]:
        """Return the body of the request to ``path``."""
        return {
            "input_ids": list(question.ids),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": self._start(question),
            "top_logprobs_num": question.top_k,
            "return_text_in_logprobs": False,
        }

    def positions(self, answer: Any, question: Question) -> list[Position]:
        """Return what the answer says of each token asked for; another answer raises, see ``read_scores``."""
        meta = answer["meta_info"]
        entries = meta["input_token_logprobs"]
        asked = question.ids[self._start(question) :]
        _expect(len(entries), len(asked), "entries")
        _expect(entries[0][0], None, "as the first entry")
        for entry, token in zip(entries, asked, strict=True):
            if not (entry[1] == 0 and token == self.last_id):
                _expect(entry[1], token, "as the id")
        tops: Sequence[Any] = [[]] * len(entries)
        if question.top_k:
            tops = meta["input_top_logprobs"]
            _expect(len(tops), len(asked), "entries of likeliest tokens")
        return [
            Position(entry[0], [(int(each[1]), each[0]) for each in top])
            for entry, top in zip(entries[1:], tops[1:], strict=True)
        ]

    @staticmethod
    def _start(question: Question) -> int:
        return len(question.ids) - question.completion - 1


Wire: TypeAlias = VLLM | SGLang
"""A kind of server, by the words that it is spoken to in."""


def read_scores(wire: Wire, answer: Any, question: Question, vocab_size: int) -> Scores:
    """Return the answer as tensors on the CPU. Raises BadAnswerError unless it holds just what was asked for.

    vocab_size: tokens that student and teacher share; no other can be among the likeliest.
    """
    try:
        positions = wire.positions(answer, question)
        _expect(len(positions), question.completion, "scored tokens")
        logprobs = [_checked(each.logprob) for each in positions]
        top = _top_tokens(positions, question.top_k, vocab_size) if question.top_k else None
        if top is not None:
            _check_aligned(logprobs, question.targets, top)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise BadAnswerError(f"{type(error).__name__} {error}"[:120]) from None
    return Scores(torch.tensor(logprobs, dtype=torch.float32), top)


def log_of_rest(logprobs: Tensor) -> Tensor:
    """Return log(1 − Σ exp(logprobs)) over the last dimension, float64 nats: the mass of all tokens not there.

    At least ``LEAST_REST``: the sum is not known more exactly than that, and the server's rounding may bring it to one
    or above.
    """
    return torch.log1p(-logprobs.double().exp().sum(-1).clamp(max=1 - LEAST_REST))


def _top_tokens(positions: Sequence[Position], k: int, vocab_size: int) -> TopTokens:
    chosen = [_likeliest(position.others, k, vocab_size) for position in positions]
    ids = torch.tensor([[token for token, _ in row] for row in chosen])
    logprobs = torch.tensor([[logprob for _, logprob in row] for row in chosen], dtype=torch.float64)
    if bool((logprobs.exp().sum(1) > 1 + ROUNDING).any()):
        raise BadAnswerError("probabilities of different tokens that sum to more than 1; it must send raw log-probs")
    with_rest = torch.cat([logprobs, log_of_rest(logprobs)[:, None]], dim=1)
    return TopTokens(ids, with_rest.float())


def _check_aligned(logprobs: Sequence[float], targets: Sequence[int], top: TopTokens) -> None:
    """Check that the likeliest tokens stand at the positions of those asked for: both tell the same of a token."""
    for logprob, target, ids, likely in zip(logprobs, targets, top.ids.tolist(), top.logprobs.tolist(), strict=True):
        expected = likely[ids.index(target)] if target in ids else min(logprob, likely[len(ids) - 1])
        if abs(logprob - expected) > ROUNDING:
            raise BadAnswerError(
                f"a log-prob of {logprob:.4g} for token {target} and {expected:.4g} among the likeliest; it mixes "
                "positions up"
            )


def _likeliest(others: Sequence[tuple[int, Any]], k: int, vocab_size: int) -> list[tuple[int, float]]:
    """Return the k likeliest of what a server sent, which may be one token more."""
    ordered = sorted(((token, _checked(logprob)) for token, logprob in others), key=lambda each: (-each[1], each[0]))
    if len({token for token, _ in ordered}) != len(ordered) or len(ordered) < k:
        raise BadAnswerError(f"{len(ordered)} likeliest tokens instead of {k} different ones")
    for token, _ in ordered[:k]:
        if not 0 <= token < vocab_size:
            raise BadAnswerError(
                f"token id {token}, which is none of the {vocab_size} that the student has too (a lower --top_k may "
                "leave it out)"
            )
    return ordered[:k]


def _checked(logprob: Any) -> float:
    """Return a log-prob that can be learned from: finite, at most 0."""
    value = float(logprob)
    if not NO_PROBABILITY < value <= ROUNDING:
        raise BadAnswerError(f"a log-prob of {value:g}, needs to be finite and at most 0")
    return min(value, 0.0)


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise BadAnswerError(f"{found!r} instead of {expected!r} {what}"[:120])
