"""From hidden states to log-probabilities, a chunk of positions at a time.

For N positions and a vocabulary of V, the plain way builds logits and log-softmax, tensors of N·V
floats: gigabytes for a modern vocabulary. Here a chunk's logits live only while that chunk is worked
on. The results are the plain ones, not an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from local_distill.head.divergences import Distribution

LOGITS_PER_CHUNK = {"cuda": 2**26}
"""Most logits of one model that exist at a time, by device: on a GPU (256 MiB in float32) enough rows to fill it."""
LOGITS_PER_CHUNK_ELSEWHERE = 2**22
"""The same on a processor: 16 MiB."""
LEAST_ROWS = 256
"""Rows that a chunk has in any case: a matrix product with fewer is slow."""
_planned_device: ContextVar[str | None] = ContextVar("planned_device", default=None)
"""The kind of device that stands for the tensors' own where chunks are cut; of one thread alone."""


@dataclass(frozen=True)
class Head:
    """What turns a hidden state h into logits over the first ``vocab_size`` tokens.

    logits = cap(scale · (h Wᵀ + b)), cap(z) = softcap · tanh(z / softcap) where there is a softcap.

    weight: (rows, H), rows ≥ vocab_size; rows past vocab_size are padding of the vocabulary, which
        takes no part in the softmax. bias: (rows,) or None.
    """

    weight: Tensor
    vocab_size: int
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """(V, H): the rows that take part, in the precision of the products."""
        return self.weight[: self.vocab_size].to(dtype)

    def logits(self, states: Tensor, matrix: Tensor) -> Tensor:
        """(n, V) logits of a chunk of states (n, H), float32 (float64 for float64 states), temperature 1."""
        logits = (states @ matrix.t()).to(softmax_dtype(states.dtype))
        if self.bias is not None:
            logits += self.bias[: self.vocab_size]
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


class TokenReading(NamedTuple):
    """What a model thinks of tokens that were sampled, temperature 1, nats.

    logprobs: (N,) of the sampled tokens. entropy: (N,) of the distributions that they stand in.
    """

    logprobs: Tensor
    entropy: Tensor


class TopTokens(NamedTuple):
    """A model's likeliest tokens at each position, and how much they leave.

    ids: (N, k) int64, likeliest first. logprobs: (N, k + 1) nats, temperature 1; the last column is the
        log of the mass of all other tokens together.
    """

    ids: Tensor
    logprobs: Tensor

    def of(self, part: slice) -> TopTokens:
        """Those of some positions."""
        return TopTokens(self.ids[part], self.logprobs[part])


@torch.no_grad()
def read_tokens(hidden: Tensor, head: Head, targets: Tensor, logits_per_chunk: int | None = None) -> TokenReading:
    """The log-probs of ``targets`` (N,) under softmax(logits(hidden)), hidden (N, H); without gradient.

    Matrix products run in the autocast precision when autocast is on, the softmax always in float32.
    """
    dtype = matmul_dtype(hidden)
    matrix = head.matrix(dtype)
    reading = hidden.new_empty(2, len(targets), dtype=softmax_dtype(dtype))

    def read(part: slice) -> None:
        model = distribution(hidden[part], head, matrix)
        reading[0, part] = model.logprobs.gather(1, targets[part, None]).squeeze(1)
        reading[1, part] = model.entropy()

    with exact_arithmetic(hidden):
        for_each_chunk(read, hidden, head, logits_per_chunk)
    return TokenReading(*reading)


@torch.no_grad()
def read_top_tokens(hidden: Tensor, head: Head, k: int, logits_per_chunk: int | None = None) -> TopTokens:
    """The k likeliest tokens at each position; see ``read_tokens``."""
    ids = torch.empty(len(hidden), k, dtype=torch.long, device=hidden.device)
    dtype = matmul_dtype(hidden)
    matrix = head.matrix(dtype)
    found = hidden.new_empty(len(hidden), k + 1, dtype=softmax_dtype(dtype))

    def read(part: slice) -> None:
        model = distribution(hidden[part], head, matrix)
        ids[part] = model.logprobs.topk(k).indices
        found[part] = model.with_tail(ids[part]).logprobs

    with exact_arithmetic(hidden):
        for_each_chunk(read, hidden, head, logits_per_chunk)
    return TopTokens(ids, found)


def distribution(states: Tensor, head: Head, matrix: Tensor) -> Distribution:
    """A model's, at the positions of a chunk of its states (n, H): (n, V); for use without gradient.

    matrix: the head's, in the precision of the products. The logits are gone before the probabilities are made.
    """
    logprobs = head.logits(states.to(matrix.dtype), matrix).log_softmax(1)
    return Distribution.of(logprobs)


def for_each_chunk(
    act: Callable[[slice], object], hidden: Tensor, head: Head, logits_per_chunk: int | None = None
) -> None:
    """Call ``act`` with the positions of each chunk. What it makes goes when it returns: in the body of a loop, a
    chunk's tensors would stay until the next chunk's have taken their names, and both would be there at once."""
    for part in chunks(hidden, head, logits_per_chunk):
        act(part)


@contextmanager
def chunks_of_device(kind: str) -> Iterator[None]:
    """Cut logits as on that kind of device, whatever device the tensors name: for a plan, which runs elsewhere.

    It holds for what this thread does; another may train meanwhile.
    """
    before = _planned_device.set(kind)
    try:
        yield
    finally:
        _planned_device.reset(before)


def chunks(hidden: Tensor, head: Head, logits_per_chunk: int | None) -> Iterator[slice]:
    """Slices of the N positions, each of few enough that its logits fit ``logits_per_chunk``."""
    if logits_per_chunk is None:
        device = _planned_device.get() or hidden.device.type
        most = LOGITS_PER_CHUNK.get(device, LOGITS_PER_CHUNK_ELSEWHERE)
        logits_per_chunk = max(most, LEAST_ROWS * head.vocab_size)
    size = max(1, logits_per_chunk // head.vocab_size)
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def exact_arithmetic(hidden: Tensor) -> torch.autocast:
    """Autocast off: what runs inside names its precisions, and autocast would take dot products of probabilities
    for matrix products and round them."""
    return torch.autocast(hidden.device.type, enabled=False)


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The precision of matrix products with ``hidden``: autocast's when it is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def float32_products() -> str:
    """How exact torch makes float32 products: highest, high (TF32) or medium."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # where somebody asked in torch's newer words, it has no answer in the older ones
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def softmax_dtype(matmul: torch.dtype) -> torch.dtype:
    """The precision of everything after the matrix product."""
    return torch.float64 if matmul == torch.float64 else torch.float32
