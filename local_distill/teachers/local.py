"""A teacher whose weights are in this process, whole or in shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from local_distill.logprobs import Head, TokenReading, TopTokens, read_tokens, read_top_tokens
from local_distill.scorer import TokenScorer
from local_distill.types import ScoredBatch, TokenBatch


def freeze(scorer: nn.Module) -> nn.Module:
    """No dropout, no gradient."""
    scorer.eval()
    scorer.requires_grad_(False)
    return scorer


class LocalTeacher:
    """Scores with a TokenScorer, wrapped or not. Frozen, in its own low precision, without autocast.

    scorer: a TokenScorer on ``device``, or what wraps one; with a sharded one every call is collective.
    """

    def __init__(self, scorer: nn.Module, device: torch.device) -> None:
        self._scorer = freeze(scorer)
        self._device = device

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher; the batch comes back on ``device``."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, *self._scorer(tokens))


class TopTokensTeacher(LocalTeacher):
    """Gives its k likeliest tokens at each position as well."""

    def __init__(self, scorer: nn.Module, device: torch.device, k: int) -> None:
        super().__init__(scorer, device)
        self._k = k

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        reading, top = self._scorer(tokens, self._read)
        return ScoredBatch(tokens, reading.logprobs, reading.entropy, top=top)

    def _read(self, hidden: Tensor, head: Head, targets: Tensor) -> tuple[TokenReading, TopTokens]:
        return read_tokens(hidden, head, targets), read_top_tokens(hidden, head, self._k)


class WholeDistributionTeacher(LocalTeacher):
    """Hands over its hidden states, for losses over the whole vocabulary. ``scorer``: not sharded."""

    def __init__(self, scorer: TokenScorer, device: torch.device) -> None:
        super().__init__(scorer, device)
        self._states = scorer.states

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, states=self._states(tokens))
