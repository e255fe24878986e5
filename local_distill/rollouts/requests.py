"""What is asked of engines with a decoding loop of their own, in vLLM's words, and the rollout that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from local_distill.batch import Prompt, Rollout
from local_distill.head.sampling import SamplingParams
from local_distill.process.seeding import rollout_seed

LOWEST_BIAS = -100.0
"""That a server takes: what is below it is raised to it. At vLLM's highest temperature it still is a factor of e⁻⁵⁰."""


@dataclass(frozen=True)
class Request:
    """One rollout is asked for. seed: its own."""

    prompt: Prompt
    position: int
    seed: int

    def rollout(self, ids: Sequence[int], logprobs: Sequence[float], stop_ids: frozenset[int]) -> Rollout:
        """Return what an engine made of it. logprobs: those that each of ``ids`` was drawn with."""
        return Rollout(
            prompt=self.prompt,
            position=self.position,
            completion=torch.tensor(ids, dtype=torch.long),
            sampler_logprobs=torch.tensor(logprobs, dtype=torch.float32),
            finish="stop" if ids[-1] in stop_ids else "length",
        )


def requests_for(prompts: Sequence[tuple[int, Prompt]], step: int, params: SamplingParams) -> list[Request]:
    """Ask for ``group_size`` rollouts of each (position, prompt), in that order."""
    return [
        Request(prompt, position, rollout_seed(params.seed, step, position, member))
        for position, prompt in prompts
        for member in range(params.group_size)
    ]


def in_vllm_words(params: SamplingParams, vocab_size: int, rows: int, bias: float = LOWEST_BIAS) -> dict[str, Any]:
    """Say how to sample. What could come from vLLM's own defaults is said as well.

    Only the first ``vocab_size`` of the head's ``rows`` are to be drawn: ``bias`` is added to the logits of the others.
    vLLM 0.32 on a GPU takes no more ``allowed_token_ids`` than entries of ``logit_bias``; the rows to leave out are few
    (128 of Qwen2.5-7B's 152,064 beside a teacher of 151,936), so they are the ones that are named.
    """
    others = dict.fromkeys(range(vocab_size, rows), bias)
    return {
        "n": 1,
        "temperature": params.choose.temperature,
        "top_p": params.choose.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": params.max_new_tokens,
        "min_tokens": 0,
        "stop_token_ids": sorted(params.stop_ids),
        "ignore_eos": True,  # its own end tokens; ours are above
        "logprobs": 0,  # of the drawn token alone
        **({"logit_bias": others} if others else {}),
    }
