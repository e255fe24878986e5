"""Rollouts → token batches: the one place that pads, sorts and shifts by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from local_distill.batch import Rollout, TokenBatch

T = TypeVar("T")

PASS_COST = 256
"""What one more pass through a model costs, in tokens: rollouts of unlike length go apart where that saves more."""


def collate(rollouts: Sequence[Rollout], pad_id: int) -> TokenBatch:
    """Lay rollouts out for one forward pass, padded on the right to the longest of them.

    An empty list gives a batch of one padding token with nothing to train on: sharded models need
    every process to make the same number of forward calls, also those with no work left.
    """
    rows = [torch.cat([torch.tensor(r.prompt.ids, dtype=torch.long), r.completion]) for r in rollouts]
    if not rows:
        rows = [torch.tensor([pad_id])]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)  # (B, L)
    row_lengths = torch.tensor([len(row) for row in rows])
    attention_mask = (torch.arange(input_ids.shape[1]) < row_lengths[:, None]).long()  # by length: pad may be EOS

    lengths = tuple(len(r.completion) for r in rollouts) or (0,)
    width = input_ids.shape[1]
    predictors = [
        # The hidden state at position p predicts the token at p + 1, so the first completion token is
        # predicted by the last prompt token.
        torch.arange(len(r.completion)) + (i * width + len(r.prompt.ids) - 1)
        for i, r in enumerate(rollouts)
    ]
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        predictors=_concatenate(predictors, torch.long),
        targets=_concatenate([r.completion for r in rollouts], torch.long),
        sampler_logprobs=_concatenate([r.sampler_logprobs for r in rollouts], torch.float32),
        lengths=lengths,
    )


def split_by_length(rollouts: Sequence[Rollout], count: int) -> list[list[Rollout]]:
    """Return exactly ``count`` lists, some empty if need be, of rollouts of like length: little will be padding.

    The longest come first: what runs out of memory does so at once, not in the middle of a step.
    """
    by_length = sorted(rollouts, key=_length, reverse=True)
    base, extra = divmod(len(by_length), count)
    parts, start = [], 0
    for i in range(count):
        end = start + base + (i < extra)
        parts.append(by_length[start:end])
        start = end
    return parts


def split_by_tokens(rollouts: Sequence[Rollout], most_tokens: int) -> list[list[Rollout]]:
    """Return lists of rollouts of like length, each of at most ``most_tokens`` with padding, cut where it costs least.

    The cost is every token that goes through the model, padding included, and PASS_COST for each list. The longest
    come first. A rollout that is longer by itself is alone in its list.
    """
    by_length = sorted(rollouts, key=_length, reverse=True)
    lengths = [_length(rollout) for rollout in by_length]
    cheapest = [0.0] + [math.inf] * len(lengths)  # of the first n rollouts, the last list of which begins at:
    begins = [0] * (len(lengths) + 1)
    for start, width in enumerate(lengths):
        for end in range(start + 1, max(start + 1, min(len(lengths), start + most_tokens // width)) + 1):
            cost = cheapest[start] + (end - start) * width + PASS_COST
            if cost < cheapest[end]:
                cheapest[end], begins[end] = cost, start
    parts: list[list[Rollout]] = []
    end = len(lengths)
    while end > 0:
        parts.insert(0, by_length[begins[end] : end])
        end = begins[end]
    return parts


@dataclass
class MicroBatches:
    """Rollouts are cut into what goes through a model together. Never changes a result, only memory and speed.

    most_tokens: most tokens of one, padding included; None for no bound; lowered when memory runs out.
    reduce_max: gives the largest of the numbers that the processes ask with; collective.
    Sharded models need every process to make the same number of calls.
    """

    most_tokens: int | None = None
    reduce_max: Callable[[int], int] = int

    def split(self, rollouts: Sequence[Rollout], least: int) -> list[list[Rollout]]:
        """Return at least ``least`` lists, as many on every process, some of them empty; collective when bounded."""
        if self.most_tokens is None:
            return split_by_length(rollouts, least)
        parts = split_by_tokens(rollouts, self.most_tokens)
        while len(parts) < least and len(largest := max(parts, key=len, default=[])) > 1:
            at, half = parts.index(largest), (len(largest) + 1) // 2
            parts[at : at + 1] = [largest[:half], largest[half:]]
        parts += [[] for _ in range(least - len(parts))]
        return parts + [[] for _ in range(self.reduce_max(len(parts)) - len(parts))]


def split_substeps(
    rollouts: Sequence[Rollout], *, batch_size: int, group_size: int, num_substeps: int, grad_accum: int,
    num_processes: int, micro_batches: MicroBatches, pad_id: int,
) -> list[list[TokenBatch]]:  # fmt: skip
    """Cut this process's rollouts into the micro-batches of each optimizer update of the step.

    A prompt's place in the global batch alone decides its substep: the updates are the same for any
    number of processes. Every process gets the same number of micro-batches.
    """
    prompts_per_substep = -(-batch_size // num_substeps)
    busiest = -(-prompts_per_substep // num_processes) * group_size  # rollouts of the process with most
    count = min(grad_accum, busiest)
    shares: list[list[Rollout]] = [[] for _ in range(num_substeps)]
    for rollout in rollouts:
        shares[rollout.position * num_substeps // batch_size].append(rollout)
    return [[collate(part, pad_id) for part in micro_batches.split(share, count)] for share in shares]


def share_of_process(batch: Sequence[T], process: int, num_processes: int) -> list[tuple[int, T]]:
    """Return (position, item) of what this process works on; interleaved, so that the shares differ by one at most."""
    return list(enumerate(batch))[process::num_processes]


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt.ids) + len(rollout.completion)


def _concatenate(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([p.to(dtype) for p in parts]) if parts else torch.empty(0, dtype=dtype)
