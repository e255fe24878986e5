"""Another precision for a model that is loaded already, with what ``from_pretrained`` would leave in float32."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model itself, its weights as if it had been loaded in ``dtype``.

    ``model.to(dtype)`` rounds more: the frequencies of rotary embeddings, 0.004 to 0.018 nats off in bf16, and what
    the architecture asks to be kept, such as the biases of DeepSeek's router.
    """
    for name, tensor in saved_tensors(model):
        tensor.data = tensor.data.to(precision_of(model, name, tensor, dtype))
    return model


def saved_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then the buffers that are part of a checkpoint; the others are computed from the configuration."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def precision_of(model: PreTrainedModel, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What a tensor of the model has when it is loaded in ``dtype``."""
    if not tensor.is_floating_point():
        return tensor.dtype
    kept = set(model._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else set()
    kept |= set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    return torch.float32 if any(re.search(each.replace("*", ".*"), name) for each in kept) else dtype
