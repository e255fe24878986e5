"""Rollouts → token batches: the one place that pads, sorts and shifts by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from local_distill.types import Rollout, TokenBatch

T = TypeVar("T")


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
    """Exactly ``count`` lists, some of them empty if need be, of rollouts of like length: little will be padding.

    The longest come first: what runs out of memory does so at once, not in the middle of a step.
    """
    by_length = sorted(rollouts, key=lambda r: len(r.prompt.ids) + len(r.completion), reverse=True)
    base, extra = divmod(len(by_length), count)
    parts, start = [], 0
    for i in range(count):
        end = start + base + (i < extra)
        parts.append(by_length[start:end])
        start = end
    return parts


def split_substeps(
    rollouts: Sequence[Rollout], *, batch_size: int, group_size: int, num_substeps: int, grad_accum: int,
    num_processes: int, pad_id: int,
) -> list[list[TokenBatch]]:  # fmt: skip
    """This process's rollouts as the micro-batches of each optimizer update of the step.

    A prompt's place in the global batch alone decides its substep, and the number of micro-batches
    depends on global sizes alone: every process makes the same number of calls, and the updates are
    the same for any number of processes.
    """
    prompts_per_substep = -(-batch_size // num_substeps)
    busiest = -(-prompts_per_substep // num_processes) * group_size  # rollouts of the process with most
    count = min(grad_accum, busiest)
    shares: list[list[Rollout]] = [[] for _ in range(num_substeps)]
    for rollout in rollouts:
        shares[rollout.position * num_substeps // batch_size].append(rollout)
    return [[collate(part, pad_id) for part in split_by_length(share, count)] for share in shares]


def share_of_process(batch: Sequence[T], process: int, num_processes: int) -> list[tuple[int, T]]:
    """(position, item) of what this process works on; interleaved, so that the shares differ by one at most."""
    return list(enumerate(batch))[process::num_processes]


def _concatenate(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([p.to(dtype) for p in parts]) if parts else torch.empty(0, dtype=dtype)
