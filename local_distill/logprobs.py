"""Log-probabilities of chosen tokens straight from hidden states, a chunk of positions at a time.

For N positions and a vocabulary of V, the plain way builds logits, log-softmax and their gradients:
three or four tensors of N·V floats, gigabytes for a modern vocabulary. Here a chunk's logits live
only while that chunk is worked on, in forward and again in backward, where they are computed anew;
between the two, only the hidden states and one number a position are kept. The results are the
plain ones, not an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**24
"""Most logits that exist at a time (64 MiB in float32)."""


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


def sampled_logprobs(hidden: Tensor, targets: Tensor, head: Head, logits_per_chunk: int = LOGITS_PER_CHUNK) -> Tensor:
    """log softmax(logits(hidden))[targets], temperature 1.

    hidden: (N, H). targets: (N,) int64, each below head.vocab_size. Returns (N,) float32 nats
    (float64 for float64 input). Matrix products run in the autocast precision when autocast is on,
    the softmax always in float32. A frozen head costs no gradient buffer.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
    chunk = max(1, logits_per_chunk // head.vocab_size)
    result: Tensor = _SampledLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head, dtype, chunk
    )
    return result


class _SampledLogprobs(torch.autograd.Function):
    """With z the logits, y the target, lse = log Σ exp z: value z_y − lse, gradient onehot(y) − softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head,
        dtype: torch.dtype, chunk: int,
    ) -> Tensor:  # fmt: skip
        matrix = weight[: head.vocab_size].to(dtype)
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        chosen = torch.empty(len(targets), dtype=accumulate, device=hidden.device)
        lse = torch.empty_like(chosen)
        for part in _chunks(len(targets), chunk):
            logits = _logits(hidden[part].to(dtype), matrix, bias, head, accumulate)
            chosen[part] = logits.gather(1, targets[part, None]).squeeze(1)
            lse[part] = logits.logsumexp(1)
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.head, ctx.dtype, ctx.chunk = head, dtype, chunk
        return chosen - lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        head, dtype = ctx.head, ctx.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        matrix = weight[: head.vocab_size].to(dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums over chunks are kept in float32 even for a bf16 head: rounding at every chunk would add up.
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=lse.dtype) if wants_bias else None
        for part in _chunks(len(targets), ctx.chunk):
            states = hidden[part].to(dtype)
            logits = _logits(states, matrix, bias, head, lse.dtype)
            # d(z_y − lse)/dz = onehot(y) − softmax(z), weighed by the incoming gradient; in the logits' own memory.
            slope = _slope(logits, head)
            grad_logits = logits.sub_(lse[part, None]).exp_().mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None].to(grad_logits.dtype))
            if slope is not None:
                grad_logits.mul_(slope)
            if grad_bias is not None:
                grad_bias[: head.vocab_size] += grad_logits.sum(0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (grad_logits @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight[: head.vocab_size], grad_logits.t(), states)
        return grad_hidden, _as(grad_weight, weight), _as(grad_bias, bias), None, None, None, None


def _logits(states: Tensor, matrix: Tensor, bias: Tensor | None, head: Head, dtype: torch.dtype) -> Tensor:
    """(n, V) logits of a chunk, in ``dtype``."""
    logits = (states @ matrix.t()).to(dtype)
    if bias is not None:
        logits += bias[: head.vocab_size]
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits = logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits


def _slope(logits: Tensor, head: Head) -> Tensor | float | None:
    """d(final logit)/d(matrix product): scale · (1 − (z / softcap)²); None where it is one."""
    if head.softcap is not None:
        return (1 - (logits / head.softcap) ** 2) * head.scale
    return head.scale if head.scale != 1.0 else None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary when the precisions agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _as(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """A gradient in its parameter's precision."""
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))
