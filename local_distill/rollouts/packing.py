"""Linear layers at the speed of the memory, on a processor.

Decoding multiplies a few rows with all the weights. In the order in which a model keeps them, that
runs at a third of what the memory could deliver; oneDNN has an order of its own that is made for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from local_distill.head.logprobs import matmul_dtype

PACKABLE = (torch.float32, torch.bfloat16)


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Let the model's linear layers work from packed copies of their weights; for use without gradient.

    The copies, in the precision of the products, last as long as the context: training changes the weights, and
    needs the memory. In float32 an adapter is added to the copy of its layer's weight, so that it costs nothing;
    a lower precision would round it away. What is not on a processor stays as it is.
    """
    packed: list[nn.Module] = []
    inside: set[nn.Module] = set()
    try:
        for module in model.modules():
            layer = None if module in inside else _as_linear(module)
            if layer is not None and _can_be_packed(layer.weight):
                module.forward = partial(_packed_linear, _pack(layer.weight), layer.bias)
                packed.append(module)
                inside.update(module.modules())
        yield
    finally:
        for module in packed:
            del module.forward


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None


def _as_linear(module: nn.Module) -> _Linear | None:
    """The one linear map that a module is, when it is one."""
    from peft.tuners.lora import Linear as LoraLinear

    if type(module) is nn.Linear:
        return _Linear(module.weight, module.bias)
    if not isinstance(module, LoraLinear) or type(module.base_layer) is not nn.Linear or module.disable_adapters:
        return None
    weight = module.base_layer.weight
    if matmul_dtype(weight) != torch.float32 or not _can_be_packed(weight):
        return None
    adapted = weight + sum(module.get_delta_weight(name) for name in module.active_adapters)
    return _Linear(adapted, module.base_layer.bias)


def _can_be_packed(weight: Tensor) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and weight.device.type == "cpu" and matmul_dtype(weight) in PACKABLE


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(matmul_dtype(weight)))


def _packed_linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    """states Wᵀ + b in the precision of the packed weight, as autocast would have it."""
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise(states.to(weight.dtype), weight, bias, "none", [], "")
