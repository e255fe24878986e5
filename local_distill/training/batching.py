"""Rollouts → token batches: the one place that pads, sorts and shifts by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from local_distill.batch import Rollout, TokenBatch
from local_distill.shared_prompts import SharedPrompts, share_prompts

T = TypeVar("T")

PASS_COST = 256
"""What one more pass through a model costs, in tokens: rollouts of unlike length go apart where that saves more."""
SLOT_COST = 1 / 16
"""What a place in the attention of completions takes, in tokens, padding included: their queries, and for each the
keys and values of its prompt and its own."""
WORTH_SHARING = 0.85
"""Prompts are shared where the cost goes down to this at most: attention has more to copy."""
LONGEST_SHARING = 1024
"""Tokens of the longest completion that shares its prompt: the mask that this takes grows with their square."""


def collate(rollouts: Sequence[Rollout], pad_id: int, share: bool = False) -> TokenBatch:
    """Lay rollouts out for one forward pass, padded on the right to the longest of them.

    share: with each prompt once as well, where that saves. An empty list gives a batch of one padding token with
    nothing to train on: sharded models need every process to make the same number of forward calls, also those with no
    work left.
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
        shared=_shared(rollouts, width) if share else None,
    )


def _shared(rollouts: Sequence[Rollout], width: int) -> SharedPrompts | None:
    """Lay out padded rows of ``width`` tokens with each prompt once; None where that saves too little."""
    if not rollouts or _sharing_cost(rollouts) > WORTH_SHARING * len(rollouts) * width:
        return None
    number = {ids: i for i, ids in enumerate(dict.fromkeys(rollout.prompt.ids for rollout in rollouts))}
    return share_prompts(
        [number[rollout.prompt.ids] for rollout in rollouts],
        [len(rollout.prompt.ids) for rollout in rollouts],
        [len(rollout.completion) for rollout in rollouts],
        width,
    )


def _sharing_cost(rollouts: Sequence[Rollout]) -> float:
    """Count the tokens that these rollouts cost in one pass with each prompt once: nothing but attention is padded."""
    prompts = {rollout.prompt.ids for rollout in rollouts}
    completions = [len(rollout.completion) for rollout in rollouts]
    longest = max(completions)
    if longest > LONGEST_SHARING or min(completions) == 0:
        return math.inf
    slots = len(rollouts) * (max(map(len, prompts)) + 2 * longest)
    return sum(map(len, prompts)) + sum(completions) - len(rollouts) + SLOT_COST * slots


def split_by_prompt(rollouts: Sequence[Rollout], most_tokens: float) -> list[list[Rollout]]:
    """Return lists that cost at most ``most_tokens`` with each prompt once.

    Rollouts of one prompt are together if they fit, and several prompts where that costs less than another pass; a
    rollout that is longer by itself is alone in its list. The most costly prompts come first.
    """
    groups: dict[tuple[int, ...], list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt.ids, []).append(rollout)
    parts: list[list[Rollout]] = []
    for group in sorted(groups.values(), key=_sharing_cost, reverse=True):
        if parts:
            together, apart = _sharing_cost(parts[-1] + group), _sharing_cost(parts[-1]) + _sharing_cost(group)
            if together <= min(most_tokens, apart + PASS_COST):
                parts[-1] += group
                continue
        parts += _pieces(sorted(group, key=_length, reverse=True), most_tokens)
    return parts


def _pieces(group: list[Rollout], most_tokens: float) -> list[list[Rollout]]:
    """Cut the rollouts of one prompt into as few lists as fit."""
    pieces = [[group[0]]]
    for rollout in group[1:]:
        if _sharing_cost([*pieces[-1], rollout]) <= most_tokens:
            pieces[-1].append(rollout)
        else:
            pieces.append([rollout])
    return pieces


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


def split_by_tokens(rollouts: Sequence[Rollout], most_tokens: float) -> list[list[Rollout]]:
    """Return lists of rollouts of like length, each of at most ``most_tokens`` with padding, cut where it costs least.

    The cost is every token that goes through the model, padding included, and PASS_COST for each list. The longest
    come first. A rollout that is longer by itself is alone in its list.
    """
    by_length = sorted(rollouts, key=_length, reverse=True)
    lengths = [_length(rollout) for rollout in by_length]
    cheapest = [0.0] + [math.inf] * len(lengths)  # of the first n rollouts, the last list of which begins at:
    begins = [0] * (len(lengths) + 1)
    for start, width in enumerate(lengths):
        at_once = int(min(len(lengths), most_tokens // width))
        for end in range(start + 1, max(start + 1, min(len(lengths), start + at_once)) + 1):
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
    shares_prompts: whether the models can read a prompt once for all its rollouts.
    Sharded models need every process to make the same number of calls.
    """

    most_tokens: int | None = None
    reduce_max: Callable[[int], int] = int
    shares_prompts: bool = False

    def split(self, rollouts: Sequence[Rollout], least: int, share: bool = False) -> list[list[Rollout]]:
        """Return at least ``least`` lists, as many on every process, some of them empty; collective.

        share: they will be laid out with each prompt once, where the models can read them so and it saves enough.
        """
        most = self.most_tokens
        plain = split_by_length(rollouts, least) if most is None else split_by_tokens(rollouts, most)
        parts = (self._sharing(rollouts, plain) if share and self.shares_prompts else []) or plain
        while len(parts) < least and len(largest := max(parts, key=len, default=[])) > 1:
            at, half = parts.index(largest), (len(largest) + 1) // 2
            parts[at : at + 1] = [largest[:half], largest[half:]]
        parts += [[] for _ in range(least - len(parts))]
        return parts + [[] for _ in range(self.reduce_max(len(parts)) - len(parts))]

    def _sharing(self, rollouts: Sequence[Rollout], plain: list[list[Rollout]]) -> list[list[Rollout]]:
        """Return lists in which every prompt stands once, where that saves enough."""
        shared = split_by_prompt(rollouts, self.most_tokens or math.inf)
        cost = sum(_sharing_cost(part) + PASS_COST for part in shared)
        padded = sum(len(part) * max(map(_length, part)) + PASS_COST for part in plain if part)
        return shared if cost <= WORTH_SHARING * padded else []


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
    updates: list[list[Rollout]] = [[] for _ in range(num_substeps)]
    for rollout in rollouts:
        updates[rollout.position * num_substeps // batch_size].append(rollout)
    return [
        [collate(part, pad_id, micro_batches.shares_prompts) for part in micro_batches.split(each, count, share=True)]
        for each in updates
    ]


def share_of_process(batch: Sequence[T], process: int, num_processes: int) -> list[tuple[int, T]]:
    """Return (position, item) of what this process works on; interleaved, so that the shares differ by one at most."""
    return list(enumerate(batch))[process::num_processes]


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt.ids) + len(rollout.completion)


def _concatenate(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([p.to(dtype) for p in parts]) if parts else torch.empty(0, dtype=dtype)
