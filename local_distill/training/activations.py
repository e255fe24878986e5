"""How many tokens are enough for a device at a time; and what forward keeps of them, by trying it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from local_distill.batch import TokenBatch
from local_distill.head.logprobs import Head
from local_distill.models.files import causal_lm
from local_distill.models.scorer import TokenScorer

ENOUGH_TOKENS = {"cuda": 16_384}
"""Tokens that fill a device's arithmetic units: more at a time is no faster, only larger and with more padding."""
ENOUGH_TOKENS_ELSEWHERE = 1024
"""The same on a processor."""

PROBES = (64, 128)
"""Tokens of the two rollouts that are counted: what they have in common does not grow with the tokens."""


class Kept(NamedTuple):
    """What forward keeps for backward. fixed: bytes, however few tokens. per_token: bytes for each that goes in."""

    fixed: float
    per_token: float


def activation_bytes(scorer: TokenScorer) -> Kept:
    """What forward keeps for backward, by counting it in two real forward passes.

    Exact for what autograd saves, whatever the architecture, the adapter and the precision. What does not grow with
    the tokens are, under autocast, the weights in the products' precision. With gradient checkpointing: the input of
    every layer, and all of one layer.
    """
    network = causal_lm(scorer.model)
    checkpointed = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    was_training = network.training
    scorer.train()
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False
        short, long = (_saved_bytes(scorer, tokens) for tokens in PROBES)
    finally:
        scorer.train(was_training)
        for module in checkpointed:
            module.gradient_checkpointing = True
    per_token = (long - short) / (PROBES[1] - PROBES[0])
    fixed = max(0.0, short - PROBES[0] * per_token)
    if not checkpointed:
        return Kept(fixed, per_token)
    text = network.config.get_text_config()
    layers = text.num_hidden_layers
    return Kept(fixed / layers, per_token / layers + layers * text.hidden_size * 4)


def _saved_bytes(scorer: TokenScorer, tokens: int) -> int:
    """Of the distinct tensors that autograd keeps of one rollout, the weights left out."""
    device = next(scorer.parameters()).device
    ids = torch.arange(tokens, device=device)[None] % scorer.vocab_size
    zeros = torch.zeros(tokens - 1, device=device)
    places = torch.arange(tokens - 1, device=device)
    batch = TokenBatch(ids, torch.ones_like(ids), places, ids[0, 1:], zeros, (tokens - 1,))
    sizes: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = scorer(batch, _sum)  # while it lives, no storage is used twice
    del kept
    return sum(sizes.values())


def _sum(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """A loss that costs nothing: the head's own memory is counted apart."""
    del head, targets
    return hidden.float().sum()
