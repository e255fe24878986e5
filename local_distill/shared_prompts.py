"""Rollouts of the same prompt laid out so that a model reads the prompt once.

All tokens stand in one row: each prompt, then the completions that go on from it. A token of a completion sees its
prompt and its own completion; ``models/branching.py`` makes attention see to that. Nothing is padding but inside of
attention, and the last token of a completion, which predicts nothing, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ALIGNED = 8
"""Lengths of prompts and completions are rounded up to this in attention: kernels take a mask of other strides only as
a copy, which each layer would keep."""


@dataclass(frozen=True)
class SharedPrompts:
    """P prompts and their R rollouts in one row of S tokens; Q and T: the longest prompt and completion, rounded up.

    group: which of the P prompts each rollout continues. prompt_lengths: (P,) tokens of each. lengths: completion
        tokens of each rollout.
    source: (S,) int64, where each token stands in the flattened (B·L) padded rows of the same rollouts.
    positions: (S,) int64, of each token in its own text, from 0.
    predictors: (N,) int64, the place in the row that predicts each completion token. The first of every completion is
        predicted by the last of its prompt.
    prompts: (P, Q) int64, places in the row of the tokens of each prompt; any place beyond its end.
    completions: (R, T) int64, the same of each completion.
    back: (S,) int64, of each token, its place in the flattened ``prompts``, or after those in ``completions``.
    """

    group: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    lengths: tuple[int, ...]
    source: Tensor
    positions: Tensor
    predictors: Tensor
    prompts: Tensor
    completions: Tensor
    back: Tensor

    @property
    def num_tokens(self) -> int:
        """S, the tokens that go through a model."""
        return len(self.source)

    def to(self, device: torch.device) -> SharedPrompts:
        """The same layout with its tensors on ``device``."""
        tensors = (self.source, self.positions, self.predictors, self.prompts, self.completions, self.back)
        return SharedPrompts(self.group, self.prompt_lengths, self.lengths, *(each.to(device) for each in tensors))

    def rows(self, start: int, end: int, width: int) -> SharedPrompts:
        """Rollouts ``start`` to ``end`` alone. width: of their padded rows."""
        of_prompts = [self.prompt_lengths[group] for group in self.group[start:end]]
        layout = share_prompts(self.group[start:end], of_prompts, self.lengths[start:end], width)
        return layout.to(self.source.device)

    @cached_property
    def keys(self) -> Tensor:
        """(R, Q + T) int64, places in the row of what a completion may see: its prompt's tokens, then its own."""
        return torch.cat([self.prompts[list(self.group)], self.completions], dim=1)

    def seen_by_completions(self, window: int | None) -> Tensor:
        """(R, T, Q + T) bool, which of ``keys`` each token of a completion sees: within ``window``, if there is one."""
        device, (longest, width) = self.source.device, (self.prompts.shape[1], self.completions.shape[1])
        before = torch.tensor([self.prompt_lengths[group] for group in self.group], device=device)[:, None, None]
        of_prompt, own = torch.arange(longest, device=device), torch.arange(width, device=device)
        positions = torch.cat([of_prompt.expand(len(before), 1, -1), before + own], dim=2)  # (R, 1, Q + T)
        there = torch.cat([of_prompt < before, torch.ones_like(before + own, dtype=torch.bool)], dim=2)
        return there & _in_sight(before + own[:, None], positions, window)

    def seen_by_prompts(self, window: int | None) -> Tensor | None:
        """(Q, Q) bool, which tokens of its prompt each one sees; None where that is all before it."""
        longest = self.prompts.shape[1]
        if window is None or longest <= window:
            return None
        places = torch.arange(longest, device=self.source.device)
        return _in_sight(places[:, None], places, window)


def _in_sight(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    seen = keys <= queries
    return seen if window is None else seen & (queries - keys < window)


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


def share_prompts(
    group: Sequence[int], prompt_lengths: Sequence[int], lengths: Sequence[int], width: int
) -> SharedPrompts:
    """Lay out padded rows of ``width`` tokens, on the CPU.

    group: a number for each rollout, the same for those of one prompt. prompt_lengths: of each rollout.
    lengths: completion tokens of each, at least 1.
    """
    first: dict[int, int] = {}
    for row, number in enumerate(group):
        first.setdefault(number, row)
    place = {number: index for index, number in enumerate(first)}
    of_prompts = tuple(prompt_lengths[row] for row in first.values())
    longest, most = _aligned(max(of_prompts)), _aligned(max(lengths))
    tokens = sum(of_prompts) + sum(lengths) - len(lengths)
    # Any place will do for padding; one for all would be where a GPU's sum of gradients waits.
    prompts = (torch.arange(len(of_prompts) * longest) % tokens).view(-1, longest)
    completions = (torch.arange(len(group) * most) % tokens).view(-1, most)
    source, positions, back, predictors = [], [], [], []
    ends, at = [], 0
    for index, row in enumerate(first.values()):
        own = torch.arange(of_prompts[index])
        prompts[index, : len(own)] = at + own
        source.append(row * width + own)
        positions.append(own)
        back.append(index * longest + own)
        at += len(own)
        ends.append(at - 1)
    for row, (number, before, length) in enumerate(zip(group, prompt_lengths, lengths, strict=True)):
        own = torch.arange(length - 1)  # the last one predicts nothing
        completions[row, : len(own)] = at + own
        source.append(row * width + before + own)
        positions.append(before + own)
        back.append(prompts.numel() + row * most + own)
        predictors += [torch.tensor([ends[place[number]]]), at + own]
        at += len(own)
    return SharedPrompts(
        tuple(place[number] for number in group), of_prompts, tuple(lengths),
        torch.cat(source), torch.cat(positions), torch.cat(predictors), prompts, completions, torch.cat(back),
    )  # fmt: skip
