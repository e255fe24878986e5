"""One model answers: what is not in the output folder yet is sampled, verified or scored, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from local_distill.backends import MakeSampler
from local_distill.batch import Prompt, Rollout, Teacher
from local_distill.errors import UserError
from local_distill.eval.answers import Answer, Divergence, Journal, OutputFolder
from local_distill.eval.held_out import DRAW
from local_distill.eval.verifying import Verifier
from local_distill.head.sampling import Greedy, NucleusSampling, SamplingParams
from local_distill.models.comparison import compare
from local_distill.training.batching import MicroBatches, collate

ANSWERS_DRAW = -2
"""The step whose random numbers answers draw: no training step's, and not those of the reverse KL."""
SCORED_TOGETHER = 4096
"""Most tokens that are scored at a time, padding included."""


def choice_of(temperature: float, top_p: float) -> NucleusSampling:
    """How answers are drawn; temperature 0 is greedy."""
    return NucleusSampling(temperature, top_p) if temperature else Greedy()


@dataclass(frozen=True)
class Sampler:
    """An evaluation samples with this.

    name: hf or vllm. params: of answers. at_once: most completions under way. tick: told of each that is written down.
    """

    name: str
    make: MakeSampler
    params: SamplingParams
    at_once: int
    tick: Callable[[int], None]


def answer_all(
    model: str, task: str, prompts: Sequence[Prompt], sampler: Sampler, verifier: Verifier, journal: Journal[Answer], *,
    tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """Sample as many answers to each prompt as are missing, verify them, and write them into the journal."""
    samples = sampler.params.group_size
    missing = [
        (place, prompt)
        for place, prompt in enumerate(prompts)
        if not all((model, task, place, member) in journal.found for member in range(samples))
    ]
    engine = sampler.make(sampler.params)
    for part in _chunks(missing, max(1, sampler.at_once // samples)):
        rollouts = engine.sample(part, ANSWERS_DRAW)
        journal.add(
            [
                _answer(model, task, index % samples, rollout, sampler.name, tokenizer, verifier)
                for index, rollout in enumerate(rollouts)
            ]
        )
        sampler.tick(len(rollouts))


def _answer(
    model: str, task: str, sample: int, rollout: Rollout, engine: str, tokenizer: PreTrainedTokenizerBase,
    verifier: Verifier,
) -> Answer:  # fmt: skip
    text = str(tokenizer.decode(rollout.completion, skip_special_tokens=True))
    reference = rollout.prompt.answer or ""
    verdict = verifier.verdict(text, reference)
    return Answer(
        model, task, rollout.position, sample, rollout.prompt.origin, rollout.prompt.text, text, verdict.extracted,
        reference, verdict.correct, len(rollout.completion), rollout.finish, engine,
    )  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """How far a model is from a teacher. student: a TokenScorer. autocast: the context in which it runs."""

    student: nn.Module
    teacher: Teacher
    pad_id: int
    autocast: Callable[[], AbstractContextManager[None]]

    @torch.no_grad()
    def sums(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, float]]:
        """Each rollout with the reverse KL summed over its tokens, nats; see ``Comparison``."""
        for part in MicroBatches(SCORED_TOGETHER).split(rollouts, 1):
            if part:
                batch = self.teacher.score(collate(part, self.pad_id))
                with self.autocast():
                    compared = compare(self.student, batch).split(batch.tokens.lengths)
                yield from ((r, _total(r, each.reverse_kl)) for r, each in zip(part, compared, strict=True))


def _total(rollout: Rollout, reverse_kl: Tensor) -> float:
    total = float(reverse_kl.double().sum())
    if not math.isfinite(total):
        raise UserError(
            f"{rollout.prompt.origin}: the reverse KL of this completion is {total}: the model or its teacher give "
            "log-probs that are not finite in this precision; use --dtype fp32"
        )
    return total


def diverge_all(
    model: str, task: str, prompts: Sequence[Prompt], sampler: Sampler, scoring: Scoring, journal: Journal[Divergence]
) -> None:
    """One completion a prompt at temperature 1 and top-p 1, scored, in the journal: as held-out prompts in training."""
    missing = [(i, prompt) for i, prompt in enumerate(prompts) if (model, task, i, 0) not in journal.found]
    engine = sampler.make(replace(sampler.params, choose=NucleusSampling(1.0, 1.0), group_size=1))
    for part in _chunks(missing, sampler.at_once):
        rollouts = engine.sample(part, DRAW, finished=scoring.teacher.prepare)
        scored = [
            Divergence(model, task, r.position, r.prompt.origin, total, len(r.completion), r.finish, sampler.name)
            for r, total in scoring.sums(rollouts)
        ]
        journal.add(sorted(scored, key=lambda each: each.question))
        sampler.tick(len(scored))


def missing_answers(output: OutputFolder, model: str, task: str, questions: int, samples: int) -> int:
    """How many answers are still to be had, counted by whole questions."""
    found = output.answers.found
    there = sum(all((model, task, q, m) in found for m in range(samples)) for q in range(questions))
    return (questions - there) * samples


def missing_divergences(output: OutputFolder, model: str, task: str, questions: int) -> int:
    """How many completions are still to be scored."""
    return sum((model, task, q, 0) not in output.divergences.found for q in range(questions))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
