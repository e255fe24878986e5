"""A model in the middle of texts: what it keeps of the tokens that it has read, and what it thinks comes next."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from local_distill.head.logprobs import matmul_dtype
from local_distill.models.files import causal_lm

STATES_ALONE = "cache_params"
"""What models without any attention (Mamba, Mamba-2, Falcon-Mamba) call their cache."""


class TokenCache(DynamicCache):  # type: ignore[misc]
    """Keys and values, and the states of convolutions and recurrences, row by row, of all tokens read so far.

    Under autocast a model with float32 weights makes float32 keys, because rotation and norms are float32, and
    attention casts them at every step. Here they are cast once, before they are kept: the same numbers in less memory.
    """

    @classmethod
    def of(cls, model: nn.Module) -> TokenCache:
        """An empty one for this model, transformers or peft."""
        return cls(config=causal_lm(model).config)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See Cache."""
        dtype = matmul_dtype(key_states)
        keys, values = super().update(key_states.to(dtype), value_states.to(dtype), layer_idx, *args, **kwargs)
        return keys, values

    def take_rows(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was; rows may be left out, and taken several times."""
        # Not batch_select_indices, which layers without keys and values do not have.
        self.reorder_cache(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(tensor.nbytes for layer in self.layers for tensor in _tensors(vars(layer)))


def next_logits(model: nn.Module, input_ids: Tensor, mask: Tensor, cache: TokenCache, vocab_size: int) -> Tensor:
    """(rows, V) logits of the next token.

    input_ids: (rows, n) new tokens, by which the cache grows. mask: (rows, L), with them and all that is in the cache.
    """
    new = input_ids.shape[1]
    inputs: dict[str, Any]
    if STATES_ALONE in parameters_of(type(causal_lm(model))):  # a state has no columns, and needs no mask for its past
        inputs = {"attention_mask": mask[:, -new:], STATES_ALONE: cache}
    else:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    output = model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **inputs)
    logits: Tensor = output.logits[:, -1, :vocab_size]
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout, and no gradient checkpointing, which would switch the cache off."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def parameters_of(model_class: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What the model's forward takes, by name."""
    return dict(inspect.signature(model_class.forward).parameters)


def _tensors(held: Any) -> list[Tensor]:
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        return [tensor for each in held.values() for tensor in _tensors(each)]
    return []
