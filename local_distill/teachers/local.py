"""A teacher whose weights are in this process, whole or in shares."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from local_distill.batch import HeadStates, Rollout, SampledLogprobs, ScoredBatch, TokenBatch, TopLogprobs
from local_distill.config.train_config import TrainConfig
from local_distill.head.logprobs import Head, TokenReading, TopTokens, read_tokens, read_top_tokens
from local_distill.models.footprint import Held, Place, Shape, TeacherMemory
from local_distill.models.quantization import held_packed
from local_distill.models.scorer import Reading
from local_distill.teachers.offload import held_offloaded


def freeze(scorer: nn.Module) -> None:
    """No dropout, no gradient."""
    scorer.eval()
    scorer.requires_grad_(False)


def held(config: TrainConfig, shape: Shape, place: Place) -> Held:
    """Count the teacher that each process holds whole: as it is, packed, or passing through its device."""
    if config.teacher_quantization != "none":
        return held_packed(config.teacher_quantization, shape, place)
    if config.teacher_offload != "none":
        return held_offloaded(shape, place)
    return Held("local", shape, place.item * shape.parameters)


MEMORY = TeacherMemory(held)


class Scorer(Protocol):
    """A TokenScorer, or what stands for one."""

    def __call__(self, batch: TokenBatch, read: Reading = ...) -> Any: ...


class WholeScorer(Scorer, Protocol):
    """One whose hidden states can be had as well: not sharded."""

    def states(self, batch: TokenBatch) -> HeadStates: ...


class LocalTeacher:
    """Scores with a TokenScorer, wrapped or not. Frozen, in its own low precision, without autocast.

    scorer: on ``device``; with a sharded one every call is collective.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        if isinstance(scorer, nn.Module):
            freeze(scorer)
        self._scorer = scorer
        self._device = device

    def prepare(self, rollout: Rollout) -> None:
        """Nothing can be done before the student has left the processor."""
        del rollout

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher; the batch comes back on ``device``."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, SampledLogprobs(*self._scorer(tokens)))


class TopTokensTeacher(LocalTeacher):
    """Gives its k likeliest tokens at each position as well."""

    def __init__(self, scorer: Scorer, device: torch.device, k: int) -> None:
        super().__init__(scorer, device)
        self._k = k

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        reading, top = self._scorer(tokens, self._read)
        return ScoredBatch(tokens, TopLogprobs(*reading, top=top))

    def _read(self, hidden: Tensor, head: Head, targets: Tensor) -> tuple[TokenReading, TopTokens]:
        return read_tokens(hidden, head, targets), read_top_tokens(hidden, head, self._k)


class WholeDistributionTeacher(LocalTeacher):
    """Hands over its hidden states, for losses over the whole vocabulary."""

    def __init__(self, scorer: WholeScorer, device: torch.device) -> None:
        super().__init__(scorer, device)
        self._states = scorer.states

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, self._states(tokens))
