"""A teacher whose weights are in this process, whole or in shares."""

from __future__ import annotations

import torch
from torch import nn

from local_distill.logprobs import sampled_logprobs
from local_distill.scorer import TokenScorer
from local_distill.types import ScoredBatch, TokenBatch


class LocalTeacher:
    """Scores with a TokenScorer, wrapped or not. Frozen, in its own low precision, without autocast.

    scorer: a TokenScorer on ``device``, or what wraps one; with a sharded one every call is collective.
    """

    def __init__(self, scorer: nn.Module, device: torch.device) -> None:
        scorer.eval()
        scorer.requires_grad_(False)
        self._scorer = scorer
        self._device = device

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher; the batch comes back on ``device``."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, self._scorer(tokens))


class WholeDistributionTeacher(LocalTeacher):
    """Hands over its hidden states as well, for losses over the whole vocabulary. ``scorer``: not sharded."""

    def __init__(self, scorer: TokenScorer, device: torch.device) -> None:
        super().__init__(scorer, device)
        self._states = scorer.states

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        states = self._states(tokens)
        return ScoredBatch(tokens, sampled_logprobs(states.hidden, tokens.targets, states.head), states)
