"""One answer, token by token, with the teacher's opinion of each.

The draws are those of training: the n-th answer of a session takes the tokens that the training sampler takes for the
first rollout of the prompt at position 0 of step n, with the same seed and settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from local_distill.chat.voices import Reading, Voice
from local_distill.head.divergences import Distribution, reverse_kl
from local_distill.models.comparison import Comparison
from local_distill.process.seeding import rollout_stream
from local_distill.rollouts.sampling import NucleusSampling

SHOWN_CHOICES = 5
"""The teacher's likeliest tokens that are kept at each position."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. stop_ids: tokens that end an answer and belong to it."""

    choose: NucleusSampling
    max_new_tokens: int
    stop_ids: frozenset[int]
    seed: int


@dataclass(frozen=True)
class Token:
    """One token of an answer. compared: both models there, N = 1, on the CPU; None where nobody judges."""

    id: int
    compared: Comparison | None = None

    @property
    def reverse_kl(self) -> float | None:
        """The exact KL(student‖teacher) of the distributions that it was drawn from, nats at temperature 1."""
        return None if self.compared is None else float(self.compared.reverse_kl)


def answer(
    writer: Voice, prompt: Sequence[int], sampling: Sampling, number: int, judge: Voice | None = None
) -> Iterator[Token]:
    """What ``writer`` says after ``prompt``, each token as soon as it is drawn.

    number: of the answer in its session, which decides the random draws. judge: reads along.
    """
    uniforms = rollout_stream(sampling.max_new_tokens, sampling.seed, number, 0, 0)
    uniforms = uniforms.to(writer.device, torch.float32 if writer.device.type == "mps" else torch.float64)
    readings = [Reading(voice) for voice in (writer, judge) if voice is not None]
    new = list(prompt)
    for uniform in uniforms:
        logits = [reading.read(new) for reading in readings]
        drawn, _ = sampling.choose(logits[0], uniform[None])
        new = drawn.tolist()
        yield Token(new[0], compare_logits(logits[0], logits[-1], drawn) if judge is not None else None)
        if new[0] in sampling.stop_ids:
            return


def compare_logits(student: Tensor, teacher: Tensor, tokens: Tensor) -> Comparison:
    """Both models at n positions, from their logits (n, V) and the tokens (n,) that were drawn; on the CPU."""
    p, q = (Distribution.of(logits.cpu().double().log_softmax(1)) for logits in (student, teacher))
    chosen = tokens.cpu()[:, None]
    s, t = (model.logprobs.gather(1, chosen).squeeze(1) for model in (p, q))
    likeliest = q.logprobs.topk(min(SHOWN_CHOICES, q.logprobs.shape[1]))
    return Comparison(s, t, reverse_kl(p, q)[0], likeliest.indices, likeliest.values)
