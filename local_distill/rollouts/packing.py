"""Linear layers at the speed of the memory, on a processor.

Decoding multiplies a few rows with all the weights. In the order in which a model keeps them, that
runs at a third of what the memory could deliver; oneDNN has an order of its own that is made for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from local_distill.logprobs import matmul_dtype

PACKABLE = (torch.float32, torch.bfloat16)


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Let the model's linear layers work from packed copies of their weights; for use without gradient.

    The copies, in the precision of the products, last as long as the context: training changes the weights, and
    needs the memory. What is not on a processor stays as it is.
    """
    packed: list[nn.Module] = []
    try:
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            for module in model.modules():
                if type(module) is nn.Linear and _can_be_packed(module):
                    module.forward = partial(_packed_linear, _pack(module.weight), module.bias)  # type: ignore[method-assign]
                    packed.append(module)
        yield
    finally:
        for module in packed:
            del module.forward


def _can_be_packed(module: nn.Linear) -> bool:
    return module.weight.device.type == "cpu" and matmul_dtype(module.weight) in PACKABLE


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(matmul_dtype(weight)))


def _packed_linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    """states Wᵀ + b in the precision of the packed weight, as autocast would have it."""
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise(states.to(weight.dtype), weight, bias, "none", [], "")
