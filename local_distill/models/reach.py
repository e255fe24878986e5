"""What text alone reaches of a model: vision and audio towers and spare heads are neither trained nor adapted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from local_distill.models.files import body_of, causal_lm

EXPERT = re.compile(r"expert[^.]*\.\d+\.", re.IGNORECASE)
"""In the name of a weight of one expert in a list of them: a text may reach any, and one batch need not."""
TOKENS = 8
"""Read to find out."""


def freeze_unreached(model: nn.Module) -> None:
    """Leave out of training what no text reaches: it would get no gradient, which data parallelism waits for.

    model: with or without an adapter, its weights loaded. A few tokens are read, and the graph that autograd makes of
    them is asked; there is no backward pass, and so no gradient in memory.
    """
    network = causal_lm(model)
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    ids = (1 + torch.arange(TOKENS, device=embedding.weight.device))[None] % embedding.weight.shape[0]
    with torch.enable_grad():
        states = body_of(network)(input_ids=ids, use_cache=False).last_hidden_state
    reached = {*_leaves(states), *map(id, head.parameters())}
    for name, parameter in model.named_parameters():
        if id(parameter) not in reached and not EXPERT.search(name):
            parameter.requires_grad_(False)


def freeze_towers(model: PreTrainedModel) -> None:
    """Leave the towers of a model without weights out of training, as far as its parts' places tell."""
    for name in towers(model):
        model.get_submodule(name).requires_grad_(False)


def towers(model: PreTrainedModel) -> list[str]:
    """Name the outermost modules beside the decoder of a model for more than text, such as its vision tower."""
    if model.config.get_text_config() is model.config:
        return []
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return list(_outermost(model, "", {id(p) for part in parts for p in part.parameters()}))


def has_experts(config: PretrainedConfig) -> bool:
    """Say whether each token chooses among experts: all configurations call their number something with that word."""
    settings = config.get_text_config().to_dict()
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]  # DBRX has them in a part
    return any("experts" in str(name) and isinstance(n, int) and n > 1 for part in parts for name, n in part.items())


def waiting_experts(model: nn.Module) -> list[nn.Parameter]:
    """List trained weights that a batch may not reach, for they are one expert's alone."""
    return [p for name, p in model.named_parameters() if p.requires_grad and EXPERT.search(name)]


def _leaves(result: Tensor) -> Iterator[int]:
    """Return ids of the parameters that ``result`` was computed from."""
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield id(node.variable)
        waiting += [before for before, _ in node.next_functions]


def _outermost(module: nn.Module, name: str, text: Collection[int]) -> Iterator[str]:
    for part, child in module.named_children():
        inside = f"{name}.{part}" if name else part
        ids = {id(p) for p in child.parameters()}
        if ids and ids.isdisjoint(text):
            yield inside
        elif not ids <= set(text):
            yield from _outermost(child, inside, text)
