"""A sum of losses over positions, with its gradient, straight from hidden states, a chunk of positions at a time.

A chunk's logits are turned into its loss and at once into its part of the gradient, and are gone: no
tensor of (positions, vocabulary) exists, and nothing is computed twice. That is three matrix products
for a head that trains (logits, states, weight) and two for a frozen one, which gets no gradient buffer.
Backward has only to scale: the loss is a sum, so every position has the same incoming gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from local_distill.head.divergences import Distribution
from local_distill.head.logprobs import Head, exact_arithmetic, for_each_chunk, matmul_dtype, softmax_dtype

PEAK = "max "
"""What the name of a stat begins with of which the largest value counts, not the mean."""

WAITING_CHUNKS = 4
"""Chunks of a low precision whose gradients are carried to the head's weight together."""


class ChunkLoss(NamedTuple):
    """What a loss makes of a chunk of n positions.

    loss: the summed loss, a scalar. grad: (n, V), its gradient with respect to the student's logits.
    stats: one (n,) for each of the loss's names.
    """

    loss: Tensor
    grad: Tensor
    stats: tuple[Tensor, ...]


class SummedLoss(NamedTuple):
    """A loss over N positions. total: a scalar with gradient. stats: for each name (N,), without."""

    total: Tensor
    stats: dict[str, Tensor]


def summed_loss(
    hidden: Tensor,
    head: Head,
    chunk_loss: Callable[[slice, Distribution], ChunkLoss],
    names: Sequence[str],
    logits_per_chunk: int | None = None,
) -> SummedLoss:
    """Σ over positions of a loss on the student's distribution, differentiable in ``hidden`` and in the head.

    hidden: (N, H). chunk_loss: from the positions of a chunk and the student's distribution there,
    float32 at temperature 1, free to be overwritten. names: of the loss's stats. Matrix products
    run in the autocast precision when autocast is on, all else in float32 (float64 for float64 input).
    """
    leaves = (hidden, head.weight, head.bias)
    wanted = [torch.is_grad_enabled() and leaf is not None and leaf.requires_grad for leaf in leaves]
    dtype = matmul_dtype(hidden)
    with exact_arithmetic(hidden):
        total, stats = _SummedLoss.apply(  # type: ignore[no-untyped-call]
            *leaves, head, chunk_loss, len(names), dtype, wanted, logits_per_chunk
        )
    return SummedLoss(total, dict(zip(names, stats, strict=True)))


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head,
        chunk_loss: Callable[[slice, Distribution], ChunkLoss], num_stats: int, dtype: torch.dtype,
        wanted: Sequence[bool], logits_per_chunk: int | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        accumulate = softmax_dtype(dtype)
        matrix = head.matrix(dtype)
        gradients = _Gradients(hidden, head, matrix, accumulate, wanted)
        total = torch.zeros((), dtype=accumulate, device=hidden.device)
        stats = torch.empty(num_stats, len(hidden), dtype=accumulate, device=hidden.device)

        def one(part: slice) -> None:
            states = hidden[part].to(dtype)
            slope, student = _read(states, head, matrix)
            found = chunk_loss(part, student)
            del student
            total.add_(found.loss)
            for row, values in zip(stats, found.stats, strict=True):
                row[part] = values
            if any(wanted):
                gradients.add(part, states, found.grad if slope is None else found.grad.mul_(slope))

        for_each_chunk(one, hidden, head, logits_per_chunk)
        ctx.save_for_backward(*gradients.result())
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in (hidden, weight, bias)]
        ctx.mark_non_differentiable(stats)
        return total, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Used once and then freed, so it may be scaled where it lies; a head is too large to copy.
        # Each takes its leaf's precision only now: fp16's loss scale arrives here, and saves what is small.
        scaled = [
            None if each is None else each.mul_(grad).to(dtype)
            for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None, None


class _Gradients:
    """Gradients of a head's inputs, summed chunk by chunk; what is not wanted is not made."""

    def __init__(
        self, hidden: Tensor, head: Head, matrix: Tensor, accumulate: torch.dtype, wanted: Sequence[bool]
    ) -> None:
        self._vocab_size, self._matrix = head.vocab_size, matrix
        # Kept in float32 even for a bf16 head: rounding at every chunk would add up.
        self._hidden = torch.empty_like(hidden, dtype=accumulate) if wanted[0] else None
        self._weight = torch.zeros_like(head.weight, dtype=accumulate) if wanted[1] else None
        self._bias = torch.zeros_like(head.bias, dtype=accumulate) if head.bias is not None and wanted[2] else None
        self._waiting = _Waiting()

    def add(self, part: slice, states: Tensor, grad_products: Tensor) -> None:
        """Carry the gradient of a chunk's matrix products, (n, V), back."""
        if self._bias is not None:
            self._bias[: self._vocab_size] += grad_products.sum(0)
        dtype = self._matrix.dtype
        size = _size(grad_products) if dtype == torch.float16 else None
        products = (grad_products if size is None else grad_products.div_(size)).to(dtype)
        if self._hidden is not None:
            self._hidden[part] = _times(products @ self._matrix, size)
        if self._weight is None:
            return
        total = self._weight[: self._vocab_size]
        if size is not None:
            total += _times(products.t() @ states, size)
        elif dtype == total.dtype:
            total.addmm_(products.t(), states)
        else:
            self._waiting.add(products, states, total)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden, weight and bias."""
        if self._weight is not None:
            self._waiting.add_to(self._weight[: self._vocab_size])
        return self._hidden, self._weight, self._bias


class _Waiting:
    """Low-precision gradients of several chunks, on their way to the weight.

    A product for each chunk would be written in low precision, read again and added to the float32 sum: as much
    traffic of (V, H) for one chunk as for many.
    """

    def __init__(self) -> None:
        self._products: Tensor | None = None  # (WAITING_CHUNKS · n, V)
        self._states: list[Tensor] = []
        self._rows = 0

    def add(self, products: Tensor, states: Tensor, total: Tensor) -> None:
        """Keep a chunk, (n, V) and (n, H); when there are enough of them, add all to ``total``."""
        if self._products is None:
            self._products = products.new_empty(WAITING_CHUNKS * len(products), products.shape[1])
        self._products[self._rows : self._rows + len(products)] = products
        self._states.append(states)
        self._rows += len(products)
        if len(self._states) == WAITING_CHUNKS:
            self.add_to(total)

    def add_to(self, total: Tensor) -> None:
        """total += Σ products ᵀ states, (V, H), of what waits; then nothing does."""
        if self._products is not None and self._states:
            total += self._products[: self._rows].t() @ torch.cat(self._states)
        self._states, self._rows = [], 0


def _size(grad: Tensor) -> Tensor:
    """The largest entry: divided by it, a chunk's gradient neither overflows fp16 nor vanishes in it."""
    return grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny) if grad.numel() else grad.new_ones(())


def _times(product: Tensor, size: Tensor | None) -> Tensor:
    return product if size is None else product.float() * size


def _read(states: Tensor, head: Head, matrix: Tensor) -> tuple[Tensor | float | None, Distribution]:
    """(d(final logit)/d(matrix product), the student's distribution) at the positions of a chunk; see ``_slope``."""
    logits = head.logits(states, matrix)
    slope = _slope(logits, head)
    logprobs = logits.log_softmax(1)
    del logits  # a chunk's are 256 MiB on a GPU, and there is enough to come
    return slope, Distribution.of(logprobs)


def _slope(logits: Tensor, head: Head) -> Tensor | float | None:
    """scale · (1 − (z / softcap)²); None where it is one."""
    if head.softcap is not None:
        return (logits / head.softcap).square_().neg_().add_(1).mul_(head.scale)
    return head.scale if head.scale != 1.0 else None
