"""What models, teachers and samplers take of memory, in the words in which each backend states its own.

Numbers of parameters come from a model's shapes, bytes from these; ``local_distill.plan`` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from local_distill.config.train_config import TrainConfig

COPIES, CACHE, WORK = "weights for decoding", "KV cache", "work"


@dataclass(frozen=True)
class Part:
    """A part is some bytes with a name. estimated: not counted from shapes, and no reason to refuse a run."""

    name: str
    bytes: float
    estimated: bool = False


@dataclass(frozen=True)
class Shape:
    """A shape is a model's numbers of parameters. A weight that is tied counts once.

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
    """Write a number of parameters for people: 32.76 B, 99.1 M, 17.6 k."""
    if number < 5e4:
        return f"{number / 1e3:.1f} k"
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


@dataclass(frozen=True)
class Place:
    """A place is where one process holds a model. item: bytes of a weight in the precision of the products."""

    device: str
    processes: int
    item: int


@dataclass(frozen=True)
class Held:
    """A teacher is held by a process in so many bytes.

    how: in a word. standing: bytes in every phase. passing: bytes that come and go while it scores; certain where they
    are counted from its shape.
    """

    how: str
    shape: Shape
    standing: float
    passing: float = 0.0
    passing_is_certain: bool = False


@dataclass(frozen=True)
class TeacherMemory:
    """A teacher states what it takes of memory.

    held: counts its weights; None where it has none of its own in these processes, and ``instead`` says in words where
    it is. shared: each process holds a share. is_student: it scores with the student's weights.
    """

    held: Callable[[TrainConfig, Shape, Place], Held] | None
    instead: str = ""
    shared: bool = False
    is_student: bool = False


class DecodingBytes(NamedTuple):
    """Our own loop decodes in so many bytes. copies: of weights. cache: keys and values at the last token. work: all
    else, at most."""

    copies: float = 0.0
    cache: float = 0.0
    work: float = 0.0


@dataclass(frozen=True)
class ToSample:
    """A process samples with this student, on this device, so many rollouts.

    config: the run's. weights: bytes of the student's weights in the precision of the products; as_masters: they are
    trained as float32 masters of it. device, memory: what it has. rollouts: of a step. longest: tokens of the longest.
    """

    config: TrainConfig
    weights: float
    as_masters: bool
    device: str
    memory: float
    rollouts: int
    longest: int


Parts = tuple[Part, ...]


@dataclass(frozen=True)
class SamplerMemory:
    """A sampler states what it takes of memory.

    sampling: counts what it holds as long as it samples, and what comes and goes then; None where there is nothing
    to count. It is told how many rollouts are sampled at a time, and may ask what our own loop would take for them.
    always: counts what it holds in all phases.
    own_loop: it is our own loop, which takes ``--sampling_batch_size`` and packs weights on a processor.
    """

    sampling: Callable[[ToSample, int, Callable[[], DecodingBytes]], tuple[Parts, Parts]] | None = None
    always: Callable[[ToSample], Parts] = lambda _: ()
    own_loop: bool = False
