"""A model in the middle of a text: what it thinks comes next, and its cache of all it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from local_distill.rollouts.decoding import TokenCache, next_logits


@dataclass(frozen=True)
class Voice:
    """Somebody who can be asked.

    name: for people. model: transformers or peft, in eval mode. vocab_size: tokens over which its softmax runs.
    context_length: longest text in tokens, None where there is no limit. context: makes the context it runs in.
    """

    name: str
    model: nn.Module
    vocab_size: int
    context_length: int | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def without_adapter(self, name: str) -> Voice:
        """The model that its adapter was put on: the same weights, no second model."""
        adapted: Any = self.model
        return Voice(name, self.model, self.vocab_size, self.context_length, adapted.disable_adapter)


class Reading:
    """One text, read by one voice as it grows."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._cache = TokenCache.of(voice.model)
        self._length = 0

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Go on with these tokens, at least one. Returns (1, V) float32 logits of the token after them."""
        self._length += len(ids)
        voice = self._voice
        new = torch.tensor([list(ids)], device=voice.device)
        mask = torch.ones(1, self._length, dtype=torch.long, device=voice.device)
        with voice.context():
            return next_logits(voice.model, new, mask, self._cache, voice.vocab_size).float()
