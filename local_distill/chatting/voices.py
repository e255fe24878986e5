"""A model in the middle of a text: what it thinks comes next, and the keys and values of all it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from local_distill.models.files import causal_lm


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
        self._cache = DynamicCache(config=causal_lm(voice.model).config)
        self._length = 0

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Go on with these tokens, at least one. Returns (1, V) float32 logits of the token after them."""
        self._length += len(ids)
        with self._voice.context():
            output = self._voice.model(
                input_ids=torch.tensor([list(ids)], device=self._voice.device),
                attention_mask=torch.ones(1, self._length, dtype=torch.long, device=self._voice.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1, : self._voice.vocab_size].float()
        return logits
