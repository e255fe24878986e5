"""A teacher whose weights are in this process, whole or in shares."""

from __future__ import annotations

import torch
from torch import nn

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
