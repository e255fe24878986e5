"""What a model takes of memory, as far as its shapes tell: numbers of parameters, and bytes with a name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Part:
    """Some bytes with a name. estimated: not counted from shapes, and no reason to refuse a run."""

    name: str
    bytes: float
    estimated: bool = False


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters. A weight that is tied counts once.

    head: of the output head's weight. packable: of linear layers other than the head, which quantisation packs;
    largest_linear: of the largest of them. largest_pass: of the layer, or the embedding that is not the head's weight
    too, that an offloaded model has on the device at one time.
    """

    parameters: int
    head: int
    packable: int
    largest_linear: int
    largest_pass: int


def shape_of(skeleton: PreTrainedModel) -> Shape:
    """Count the parameters of a model on the meta device."""
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    modules = list(skeleton.modules())
    linear = [m.weight.numel() for m in modules if isinstance(m, nn.Linear | Conv1D) and m is not head]
    layers = [_parameters(m) for m in modules if type(m).__name__ in (skeleton._no_split_modules or ())]
    apart = [] if embedding.weight is head.weight else [embedding.weight.numel()]
    return Shape(
        parameters=_parameters(skeleton),
        head=head.weight.numel(),
        packable=sum(linear),
        largest_linear=max(linear, default=0),
        largest_pass=max(layers + apart, default=0),
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def billions(number: int) -> str:
    """Write a number of parameters for people: 32.76 B, 99.1 M."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
