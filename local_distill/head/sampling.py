"""Logits → next tokens, with the log-probability each was drawn with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUCLEUS_CANDIDATES = 1024
"""The nucleus is looked for among this many tokens first: sorting a whole vocabulary costs ten times more."""


@dataclass(frozen=True)
class NucleusSampling:
    """Temperature, then top-p, then one draw by inverting the cumulative distribution.

    One uniform number decides a row's token whatever else is in the batch, which is what lets the
    same seed give the same rollouts for any batch size and any number of processes.
    """

    temperature: float
    top_p: float

    @property
    def exact(self) -> bool:
        """Whether tokens are drawn from the model's own distribution."""
        return self.temperature == 1.0 and self.top_p == 1.0

    def __call__(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """From logits (n, V) and one draw from [0, 1) a row, float64 (n,): token ids (n,) int64 and their m_t (n,)."""
        logprobs = (logits.float() / self.temperature).log_softmax(-1)
        probs = logprobs.exp()
        if self.top_p < 1.0:
            probs = probs.where(probs >= nucleus_floor(probs, self.top_p), 0.0)
        # float64, or the tail of a large vocabulary drowns in the sum's rounding (MPS has none).
        cumulative = probs.to(torch.float32 if probs.device.type == "mps" else torch.float64).cumsum(-1)
        total = cumulative[:, -1:]
        target = uniforms.to(cumulative)[:, None] * total
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, target, right=True)  # first token whose sum exceeds it: never p = 0
        tokens = tokens.clamp(max=probs.shape[1] - 1)  # past the end only for NaN, which the learner will report
        kept = total.log().float() if self.top_p < 1.0 else 0.0
        return tokens.squeeze(1), (logprobs.gather(1, tokens) - kept).squeeze(1)

    def logprobs_of(self, logprobs: Tensor, tokens: Tensor) -> Tensor:
        """m_t (n,): what these tokens (n,) are drawn with where the log-probs at temperature 1 are (n, V).

        A token outside of the nucleus is never drawn: −inf.
        """
        if self.temperature != 1.0:
            logprobs = (logprobs / self.temperature).log_softmax(-1)
        chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
        if self.top_p == 1.0:
            return chosen
        probs = logprobs.exp()
        floor = nucleus_floor(probs, self.top_p)
        kept = probs.where(probs >= floor, 0.0).sum(-1)
        return (chosen - kept.log()).where(chosen.exp() >= floor.squeeze(1), -torch.inf)


@dataclass(frozen=True)
class Greedy(NucleusSampling):
    """The likeliest token, and of several that tie the first. Other engines go by its top_p, which is almost 0."""

    temperature: float = 1.0
    top_p: float = 1e-9

    def __call__(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (n,) int64 and their m_t (n,), which is 0: nothing else can be chosen."""
        del uniforms
        tokens = logits.argmax(-1)
        return tokens, torch.zeros(tokens.shape, device=logits.device)


@dataclass(frozen=True)
class SamplingParams:
    """A sampler draws completions in this way.

    choose: how a token is drawn. group_size: completions of each prompt. max_new_tokens: at most so many in one.
    stop_ids: tokens that end a completion and belong to it. seed: what its random numbers come from, among others.
    """

    choose: NucleusSampling
    group_size: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    seed: int


def nucleus_floor(probs: Tensor, top_p: float) -> Tensor:
    """(n, 1): the least probability inside the smallest set of likeliest tokens whose sum reaches top_p.

    probs: (n, V). Tokens that tie with the last one are inside.
    """
    candidates = probs.topk(min(NUCLEUS_CANDIDATES, probs.shape[-1])).values
    if bool((candidates.sum(-1) < top_p).any()):
        candidates = probs.sort(descending=True).values
    last = (candidates.cumsum(-1) < top_p).sum(-1, keepdim=True).clamp(max=candidates.shape[-1] - 1)
    return candidates.gather(1, last)
