"""A teacher that is larger than the device: its body stays in the machine's memory and passes through layer by layer.

While it scores, the device holds one layer of it at a time, and the output head, which losses read outside of forward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from local_distill.models.files import body_of, causal_lm
from local_distill.models.footprint import Held, Place, Shape
from local_distill.models.scorer import TokenScorer

ARENA_BYTES = 2**30
"""Locked memory comes in powers of two: large pieces for many weights waste little, one for each up to half."""
ALIGNMENT = 256


def offloaded(scorer: TokenScorer, device: torch.device) -> TokenScorer:
    """Return the scorer, its weights in the machine's memory, ready to score on ``device``; for reading alone.

    scorer: on the CPU, without an adapter; it is changed in place. On CUDA its weights are moved, one at a time, to
    locked memory, from which copies are faster and do not stop the processor. An embedding that is tied to the head
    stays on the device with it.
    """
    scorer.requires_grad_(False)
    network = causal_lm(scorer.model)
    body, head, embedding = body_of(network), network.get_output_embeddings(), network.get_input_embeddings()
    tied = embedding.weight is head.weight
    if device.type == "cuda":
        lock_in_memory(p for p in body.parameters() if p is not head.weight)
    for part in network.children():
        if part is not body:
            part.to(device)
    if tied:
        embedding.weight = head.weight
    for module in body.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    _let_pass(body, network._no_split_modules or (), head.weight, device)
    return scorer


def held_offloaded(shape: Shape, place: Place) -> Held:
    """Count a model of which a GPU holds the head and, in passing, one layer; a processor's memory is the machine's."""
    if place.device != "cuda":
        return Held("offload", shape, place.item * shape.parameters)
    return Held("offload", shape, place.item * shape.head, place.item * shape.largest_pass, passing_is_certain=True)


def lock_in_memory(parameters: Iterable[nn.Parameter], lock: bool = True) -> None:
    """Move the parameters one by one to memory that the system cannot swap out, many to a piece.

    lock: False leaves the memory ordinary, for machines without a GPU.
    """
    room = torch.empty(0, dtype=torch.uint8)
    for parameter in parameters:
        size = -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(room):
            room = torch.empty(max(size, ARENA_BYTES), dtype=torch.uint8, pin_memory=lock)
        place, room = room[: parameter.nbytes], room[size:]
        parameter.data = place.view(parameter.dtype).view(parameter.shape).copy_(parameter.data)


def _let_pass(module: nn.Module, layers: Collection[str], kept: Tensor, device: torch.device) -> None:
    """Make the module's weights come when it is called and go when it returns, and those inside it alike.

    accelerate's hooks for this empty the device's cache at every weight, the student's share of it as well.

    layers: classes of modules whose weights come together. kept: the one weight that stays.
    """
    is_layer = type(module).__name__ in layers
    owners = module.modules() if is_layer else (module,)
    places = [(o, name, p.data) for o in owners for name, p in o.named_parameters(recurse=False) if p is not kept]
    if places:
        absent = [nn.Parameter(weight.to("meta"), requires_grad=False) for _, _, weight in places]

        def come(*_: object) -> None:
            for owner, name, weight in places:
                there = weight.to(device, non_blocking=True)  # in the order of the stream, before it is used
                owner._parameters[name] = nn.Parameter(there, requires_grad=False)

        def go(*_: object) -> None:
            for (owner, name, _weight), nothing in zip(places, absent, strict=True):
                owner._parameters[name] = nothing

        go()
        module.register_forward_pre_hook(come)
        module.register_forward_hook(go, always_call=True)  # out of memory inside it included
    if not is_layer:
        for child in module.children():
            _let_pass(child, layers, kept, device)
