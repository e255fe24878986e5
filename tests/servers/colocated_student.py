"""A student that samples with vLLM in its own process; run by vLLM's Python, see test_colocated.py.

    python colocated_student.py MODEL_FOLDER float32|bfloat16 adapter|whole RESULT.json

Every draw is scored again by transformers, in float32, from the weights that it should come from and from older ones.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from local_distill.batch import Prompt
from local_distill.errors import RunError
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.rollouts.vllm_colocated import ColocatedVLLMRollouts, SharedEngine, merged_weights

ALLOWED, NEW_TOKENS, MAX_TOKENS = 300, 24, 256
STOP = tuple(range(0, ALLOWED, 30))
EXACT, NUCLEUS = NucleusSampling(1.0, 1.0), NucleusSampling(0.7, 0.9)
LONG = [(7 * i) % 250 + 20 for i in range(200)]
PROMPTS = [(position, Prompt(tuple(ids), "", "")) for position, ids in enumerate([LONG, [*LONG, 99], [5, 6, 7]])]
"""The first two share more than a block of the engine's cache of keys and values."""


class Student:
    """The model that trains; an update is noise in its weights."""

    def __init__(self, folder: str, kind: str) -> None:
        self.version = 0
        self.noise = 0.5 if kind == "adapter" else 0.05  # of a weight's own size; a real model must stay one
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if kind == "adapter":
            self.model = add_lora(self.model, LoraSettings(4, 8.0, 0.0, "all-linear"), seed=0)
        self.update()

    def update(self) -> None:
        generator = torch.Generator().manual_seed(self.version)
        trained = [p for n, p in self.model.named_parameters() if p.requires_grad and p.dim() > 1 and "embed" not in n]
        with torch.no_grad():
            for parameter in trained:
                size = self.noise * float(parameter.std()) if float(parameter.abs().max()) else 0.05
                parameter += size * torch.randn(parameter.shape, generator=generator)
        self.version += 1

    def score(self, rollout, choose):
        """(T,) what transformers says the tokens are drawn with."""
        ids = torch.cat([torch.tensor(rollout.prompt.ids), rollout.completion])
        with torch.no_grad():
            logits = self.model(ids[None]).logits[0, len(rollout.prompt.ids) - 1 : -1, :ALLOWED].float()
        return choose.logprobs_of(logits.log_softmax(-1), rollout.completion)


def differences(student, rollouts, choose=EXACT):
    """Mean absolute difference of the engine's log-probs from ours, nats; tokens outside of our nucleus left out."""
    ours = torch.cat([student.score(rollout, choose) for rollout in rollouts])
    theirs = torch.cat([rollout.sampler_logprobs for rollout in rollouts])
    inside = ours.isfinite()
    return {"mean": float((ours - theirs)[inside].abs().mean()), "outside": float((~inside).float().mean())}


def tokens(rollouts):
    return [rollout.completion.tolist() for rollout in rollouts]


def look_at_draws(plain, stopping, first):
    """What depends on what."""
    ended = stopping.sample(PROMPTS, 2)
    return {
        "first": tokens(first),
        "places": [(rollout.position, len(rollout.prompt.ids)) for rollout in first],
        "again": tokens(plain.sample(PROMPTS, 0)),
        "alone": tokens(plain.sample(PROMPTS[1:2], 0)),
        "next_step": tokens(plain.sample(PROMPTS, 1)),
        "ended": [(rollout.finish, ids) for rollout, ids in zip(ended, tokens(ended), strict=True)],
    }


def main() -> None:
    folder, precision, kind, target = sys.argv[1:]
    dtype = getattr(torch, precision)
    rank = 0
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
    student = Student(folder, kind)
    left_out: set[str] = set()

    def weights():
        return ((name, w) for name, w in merged_weights(student.model, dtype) if name not in left_out)

    engine = SharedEngine(
        folder, weights=weights, version=lambda: student.version, dtype=dtype, max_tokens=MAX_TOKENS,
        memory_share=0.5, seed=0, eager=True,
    )  # fmt: skip

    def sampler(choose: NucleusSampling, stop_ids: Sequence[int]) -> ColocatedVLLMRollouts:
        params = SamplingParams(choose, 4 if kind == "adapter" else 1, NEW_TOKENS, frozenset(stop_ids), seed=3)
        return ColocatedVLLMRollouts(engine, params=params, vocab_size=ALLOWED)

    plain, stopping = sampler(choose=EXACT, stop_ids=()), sampler(choose=EXACT, stop_ids=STOP)
    result: dict[str, object] = {"rows": engine.rows}

    told = []
    first = plain.sample(PROMPTS, 0, told.append)
    result["first_weights"] = differences(student, first)
    if kind == "adapter":
        result["told"] = sorted(map(id, told)) == sorted(map(id, first))
        result |= look_at_draws(plain, stopping, first)
        result["nucleus"] = differences(student, sampler(choose=NUCLEUS, stop_ids=()).sample(PROMPTS, 0), NUCLEUS)

    student.update()
    result["second_weights"] = differences(student, plain.sample(PROMPTS, 4))
    result["first_draws_by_second_weights"] = differences(student, first)

    left_out.add(next(name for name, _ in merged_weights(student.model, dtype) if name.endswith("o_proj.weight")))
    student.version += 1
    try:
        plain.sample(PROMPTS, 5)
    except RunError as error:
        result["left_out"] = str(error)
    if rank:
        target += f".{rank}"
    Path(target).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
