"""Student and teacher side by side, at every token of a batch: what evaluation measures and people read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vecdot

from local_distill.batch import HeadStates, ScoredBatch, TopLogprobs
from local_distill.head.logprobs import (
    Head,
    distribution,
    exact_arithmetic,
    for_each_chunk,
    matmul_dtype,
    softmax_dtype,
)


class Comparison(NamedTuple):
    """Both models are compared at N tokens that were sampled, nats at temperature 1; without gradient.

    student, teacher: (N,) s_t and q_t.
    reverse_kl: (N,) the exact KL(student‖teacher) at that position where the teacher gives its whole distribution,
        else the one-sample estimate s_t − q_t. Both have the same expectation over the student's own samples.
    likeliest: (N, k) int64, the teacher's likeliest tokens, likeliest first; likeliest_logprobs: (N, k). k is 0 where
        they were not asked for or the teacher cannot tell.
    """

    student: Tensor
    teacher: Tensor
    reverse_kl: Tensor
    likeliest: Tensor
    likeliest_logprobs: Tensor

    def split(self, lengths: Sequence[int]) -> list[Comparison]:
        """Return one comparison for each rollout, on the CPU. lengths: tokens of each; they sum to N."""
        return list(map(Comparison, *(torch.split(column.cpu(), list(lengths)) for column in self)))


@torch.no_grad()
def compare(student: nn.Module, batch: ScoredBatch, k: int = 0) -> Comparison:
    """Read a batch that the teacher has scored with one forward of the student, a TokenScorer.

    k: how many of the teacher's likeliest tokens to give at each position, fewer where it gives fewer.
    """
    teacher = batch.signal
    if isinstance(teacher, HeadStates):
        whole: Comparison = student(batch.tokens, partial(compare_whole, teacher, k))
        return whole
    s, q = student(batch.tokens).logprobs, teacher.logprobs
    if not isinstance(teacher, TopLogprobs):
        return Comparison(s, q, s - q, batch.tokens.targets.new_empty(len(q), 0), q.new_empty(len(q), 0))
    known = min(k, teacher.top.ids.shape[1])  # the last of its log-probs is that of all other tokens
    return Comparison(s, q, s - q, teacher.top.ids[:, :known], teacher.top.logprobs[:, :known])


@torch.no_grad()
def compare_whole(teacher: HeadStates, k: int, hidden: Tensor, head: Head, targets: Tensor) -> Comparison:
    """Read the student, see TokenScorer; a chunk of both models' logits exists at a time."""
    dtype, k = matmul_dtype(hidden), min(k, head.vocab_size)
    found = hidden.new_empty(3, len(hidden), dtype=softmax_dtype(dtype))
    ids, logprobs = targets.new_empty(len(hidden), k), found.new_empty(len(hidden), k)
    ours, theirs = head.matrix(dtype), teacher.head.matrix(teacher.hidden.dtype)

    def read(part: slice) -> None:
        p = distribution(hidden[part], head, ours)
        q = distribution(teacher.hidden[part], teacher.head, theirs)
        chosen = targets[part, None]
        found[0, part] = p.logprobs.gather(1, chosen).squeeze(1)
        found[1, part] = q.logprobs.gather(1, chosen).squeeze(1)
        found[2, part] = vecdot(p.probs, p.logprobs - q.logprobs)
        if k:
            logprobs[part], ids[part] = q.logprobs.topk(k)

    with exact_arithmetic(hidden):
        for_each_chunk(read, hidden, head)
    return Comparison(found[0], found[1], found[2], ids, logprobs)
