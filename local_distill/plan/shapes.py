"""What is counted of a model without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters. A weight that is tied counts once.

    head: of the output head's weight. apart: of the head, and of the embedding where it is the same weight.
    packable: of linear layers other than the head, which quantisation packs; largest_linear: of the largest of them.
    largest_pass: of the layer, or the embedding, that an offloaded model has on the device at one time.
    """

    parameters: int
    head: int
    packable: int
    largest_linear: int
    largest_pass: int


def shape_of(skeleton: PreTrainedModel) -> Shape:
    """Of a model on the meta device."""
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    linear = [
        module.weight.numel()
        for module in skeleton.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    names = skeleton._no_split_modules or ()
    layers = [
        sum(p.numel() for p in module.parameters()) for module in skeleton.modules() if type(module).__name__ in names
    ]
    passes = [] if embedding.weight is head.weight else [embedding.weight.numel()]
    return Shape(
        parameters=sum(p.numel() for p in skeleton.parameters()),
        head=head.weight.numel(),
        packable=sum(linear),
        largest_linear=max(linear, default=0),
        largest_pass=max(layers + passes, default=0),
    )


def billions(number: int) -> str:
    """A number of parameters for people: 32.76 B, 99.1 M."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
