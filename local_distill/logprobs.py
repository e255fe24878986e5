"""Log-probabilities of chosen tokens straight from hidden states, a chunk of positions at a time.

For N positions and a vocabulary of V, the plain way builds logits, log-softmax and their gradients:
three or four tensors of N·V floats, gigabytes for a modern vocabulary. Here a chunk's logits live
only while that chunk is worked on, in forward and again in backward, where they are computed anew;
between the two, only the hidden states and one number a position are kept. The results are the
plain ones, not an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    chunk = max(1, logits_per_chunk // head.vocab_size)
    result: Tensor = _SampledLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head, _matmul_dtype(hidden), chunk
    )
    return result


def reverse_kl(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, logits_per_chunk: int = LOGITS_PER_CHUNK
) -> Tensor:
    """Σ_v p_v (log p_v − log q_v) at every position, temperature 1: the reverse KL without sampling noise.

    hidden: (N, H) of the student, with gradient. teacher_hidden: (N, H') of the teacher, without. Both heads
    span the same vocab_size. Returns (N,) nats, ≥ 0 but for rounding; precisions as in ``sampled_logprobs``.
    """
    chunk = max(1, logits_per_chunk // (2 * head.vocab_size))  # two models' logits at a time
    result: Tensor = _ReverseKL.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, teacher_hidden, head, teacher_head, _matmul_dtype(hidden), chunk
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
        total = _HeadGradients(hidden, weight, bias, ctx.head, ctx.dtype, lse.dtype, ctx.needs_input_grad)
        for part in _chunks(len(targets), ctx.chunk):
            states, logits = total.logits(part)
            slope = _slope(logits, ctx.head)
            # d(z_y − lse)/dz = onehot(y) − softmax(z), weighed by the incoming gradient; in the logits' own memory.
            grad_logits = logits.sub_(lse[part, None]).exp_().mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None].to(grad_logits.dtype))
            total.add(part, states, grad_logits, slope)
        return *total.result(), None, None, None, None


class _ReverseKL(torch.autograd.Function):
    """With k = Σ_v p_v (log p_v − log q_v): dk/dz_v = p_v (log p_v − log q_v − k), z the student's logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher_hidden: Tensor, head: Head,
        teacher_head: Head, dtype: torch.dtype, chunk: int,
    ) -> Tensor:  # fmt: skip
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        matrix = weight[: head.vocab_size].to(dtype)
        divergence = torch.empty(len(hidden), dtype=accumulate, device=hidden.device)
        for part in _chunks(len(hidden), chunk):
            logprobs = _logits(hidden[part].to(dtype), matrix, bias, head, accumulate).log_softmax(1)
            difference = logprobs - _teacher_logprobs(teacher_hidden[part], teacher_head, accumulate)
            divergence[part] = logprobs.exp_().mul_(difference).sum(1)
        ctx.save_for_backward(hidden, weight, bias, teacher_hidden, divergence)
        ctx.head, ctx.teacher_head, ctx.dtype, ctx.chunk = head, teacher_head, dtype, chunk
        return divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, teacher_hidden, divergence = ctx.saved_tensors
        total = _HeadGradients(hidden, weight, bias, ctx.head, ctx.dtype, divergence.dtype, ctx.needs_input_grad)
        for part in _chunks(len(hidden), ctx.chunk):
            states, logits = total.logits(part)
            slope = _slope(logits, ctx.head)
            logprobs = logits.log_softmax(1)
            difference = logprobs - _teacher_logprobs(teacher_hidden[part], ctx.teacher_head, divergence.dtype)
            difference.sub_(divergence[part, None])
            grad_logits = logprobs.exp_().mul_(difference).mul_(grad[part, None])
            total.add(part, states, grad_logits, slope)
        return *total.result(), None, None, None, None, None


class _HeadGradients:
    """Gradients of a head's inputs, summed chunk by chunk; what is not wanted is not made."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, dtype: torch.dtype,
        accumulate: torch.dtype, wanted: Sequence[bool],
    ) -> None:  # fmt: skip
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self._head, self._dtype, self._accumulate = head, dtype, accumulate
        self._matrix = weight[: head.vocab_size].to(dtype)
        self._grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        # Sums over chunks are kept in float32 even for a bf16 head: rounding at every chunk would add up.
        self._grad_weight = torch.zeros_like(weight, dtype=accumulate) if wanted[1] else None
        self._grad_bias = torch.zeros_like(bias, dtype=accumulate) if bias is not None and wanted[2] else None

    def logits(self, part: slice) -> tuple[Tensor, Tensor]:
        """The chunk's hidden states, in the precision of the products, and its logits, computed anew."""
        states = self._hidden[part].to(self._dtype)
        return states, _logits(states, self._matrix, self._bias, self._head, self._accumulate)

    def add(self, part: slice, states: Tensor, grad_logits: Tensor, slope: Tensor | float | None) -> None:
        """Carry the gradient of a chunk's final logits back; ``grad_logits`` is used up."""
        vocab_size = self._head.vocab_size
        if slope is not None:
            grad_logits.mul_(slope)
        if self._grad_bias is not None:
            self._grad_bias[:vocab_size] += grad_logits.sum(0)
        grad_logits = grad_logits.to(self._dtype)
        if self._grad_hidden is not None:
            self._grad_hidden[part] = (grad_logits @ self._matrix).to(self._hidden.dtype)
        if self._grad_weight is not None:
            _add_product(self._grad_weight[:vocab_size], grad_logits.t(), states)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden, weight and bias, each in its own precision."""
        return self._grad_hidden, _as(self._grad_weight, self._weight), _as(self._grad_bias, self._bias)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _teacher_logprobs(hidden: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """(n, V) log-probs of a chunk, the products in the teacher's own precision."""
    return _logits(hidden, head.weight[: head.vocab_size], head.bias, head, dtype).log_softmax(1)


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
