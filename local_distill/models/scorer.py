"""A causal language model as one module: token batch in, a reading of its completion tokens out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from local_distill.batch import HeadStates, TokenBatch
from local_distill.head.logprobs import Head, read_tokens
from local_distill.models.branching import read_branches
from local_distill.models.files import body_of, causal_lm
from local_distill.models.reach import waiting_experts

Reading = Callable[[Tensor, Head, Tensor], Any]
"""From hidden states (N, H), the head that reads them and the sampled tokens (N,): log-probs, top tokens, a loss."""


ADAPTER = "lora_"
"""What the names of an adapter's modules contain, as peft gives them."""


class TokenScorer(nn.Module):
    """A model is wrapped so that its forward gives a few numbers for each completion token and nothing larger.

    One module with one forward, so that DDP and DeepSpeed wrap it and their hooks run. The student
    trains through it, the teacher is read through it.

    vocab_size: tokens over which the softmax runs; at most the rows of the model's head. needs_mask: whether the model
    is told where the padding is. Padding is on the right and a causal model looks to the left, so its real tokens are
    the same without, which ``check_scorer`` makes sure of; a mask makes attention slower and keeps (B, 1, L, L).
    shares_prompts: whether the model reads a prompt once for all its rollouts, where the batch is laid out so.
    """

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size
        self.needs_mask = False
        self.shares_prompts = False
        self._experts: list[nn.Parameter] = []

    def forward(self, batch: TokenBatch, read: Reading = read_tokens) -> Any:
        """Read the completion tokens with ``read``; by default their log-probs given everything before them."""
        states = self.states(batch)
        return read(states.hidden, states.head, batch.targets)

    def train(self, mode: bool = True) -> TokenScorer:
        """Train as the model samples: nothing in it is noisy but the dropout of an adapter, which was asked for.

        Routers draw their experts and jitter their inputs, and Gemma 3n clips its weights, in modules that train. So
        only an adapter's modules do, and those whose activations are computed again, which look at the same flag.
        """
        super().train(mode)
        self._experts = waiting_experts(self.model)
        for name, module in self.model.named_modules():
            module.training = mode and (ADAPTER in name or getattr(module, "gradient_checkpointing", False))
        return self

    def states(self, batch: TokenBatch) -> HeadStates:
        """Return the hidden states (N, H) that predict the completion tokens, and the head that reads them."""
        network = causal_lm(self.model)
        if batch.shared and self.shares_prompts:
            visited = read_branches(body_of(network), batch.input_ids, batch.shared)
        else:
            mask = batch.attention_mask if self.needs_mask else None
            hidden = body_of(network)(
                input_ids=batch.input_ids, attention_mask=mask, use_cache=False
            ).last_hidden_state  # (B, L, H)
            visited = hidden.flatten(0, 1).index_select(0, batch.predictors)
        if torch.is_grad_enabled() and self._experts:
            # An expert without a token has no gradient here, which other processes wait for.
            visited = (
                visited + torch.stack([expert.flatten()[0] for expert in self._experts]).sum().to(visited.dtype) * 0
            )
        return HeadStates(visited, head_of(network, self.vocab_size))


def head_of(network: PreTrainedModel, vocab_size: int) -> Head:
    """Return the output head of a causal LM, with what its family does to the logits after it."""
    config = network.config.get_text_config()
    output = network.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return Head(output.weight, vocab_size, output.bias, scale, softcap)
