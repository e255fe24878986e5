"""One model answers: what is not in the output folder yet is sampled, verified or scored, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from torch import nn

from local_distill.backends import MakeSampler
from local_distill.batch import Prompt, Rollout, Teacher
from local_distill.errors import UserError
from local_distill.eval.held_out import DRAW, compare_rollouts, total_of
from local_distill.eval.output_folder import Answer, Journal, ScoredCompletion
from local_distill.eval.questions_and_model import Subject
from local_distill.eval.verifying import Verifier
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.comparison import Comparison
from local_distill.training.batching import MicroBatches

ANSWERS_DRAW = -2
"""The step whose random numbers answers draw: no training step's, and not those of the reverse KL."""
SCORED_TOGETHER = 4096
"""Most tokens that are scored at a time, padding included."""


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


@dataclass(frozen=True)
class Scoring:
    """A model is compared with its teacher by this. student: a TokenScorer. autocast: the context in which it runs."""

    student: nn.Module
    teacher: Teacher
    pad_id: int
    autocast: Callable[[], AbstractContextManager[None]]

    def compare(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, Comparison]]:
        """Yield each rollout with what both models make of its tokens; those of like length come together."""
        return compare_rollouts(
            self.student, MicroBatches(SCORED_TOGETHER).split(rollouts, 1), self.pad_id, score=self.teacher.score,
            context=lambda _: self.autocast(),
        )  # fmt: skip


def answer_all(subject: Subject, task: str, sampler: Sampler, verifier: Verifier, journal: Journal[Answer]) -> None:
    """Sample as many answers to each question as are missing, verify them, and write them into the journal."""
    prompts, samples = subject.prompts[task], sampler.params.group_size

    def judged(rollout: Rollout, sample: int) -> Answer:
        text = str(subject.pair.student.tokenizer.decode(rollout.completion, skip_special_tokens=True))
        prompt, reference = rollout.prompt, rollout.prompt.answer or ""
        verdict = verifier.verdict(text, reference)
        return Answer(
            subject.name, task, rollout.position, sample, prompt.origin, prompt.text, text, verdict.extracted,
            reference, verdict.correct, len(rollout.completion), rollout.finish, sampler.name,
        )  # fmt: skip

    engine, missing = sampler.make(sampler.params), journal.missing(subject.name, task, len(prompts), samples)
    for part in _chunks(prompts, missing, max(1, sampler.at_once // samples)):
        rollouts = engine.sample(part, ANSWERS_DRAW)
        journal.add([judged(rollout, index % samples) for index, rollout in enumerate(rollouts)])
        sampler.tick(len(rollouts))


def score_all(
    subject: Subject, task: str, sampler: Sampler, scoring: Scoring, journal: Journal[ScoredCompletion]
) -> None:
    """Draw and score one completion a prompt, at temperature 1 and top-p 1: as held-out prompts in training."""
    prompts, params = subject.prompts[task], replace(sampler.params, choose=NucleusSampling(1.0, 1.0), group_size=1)
    engine = sampler.make(params)
    for part in _chunks(prompts, journal.missing(subject.name, task, len(prompts)), sampler.at_once):
        rollouts = engine.sample(part, DRAW, finished=scoring.teacher.prepare)
        scored = [
            ScoredCompletion(
                subject.name, task, rollout.position, rollout.prompt.origin, _finite(rollout, total_of(compared).sum),
                len(rollout.completion), rollout.finish, sampler.name,
            )
            for rollout, compared in scoring.compare(rollouts)
        ]  # fmt: skip
        journal.add(sorted(scored, key=lambda each: each.question))
        sampler.tick(len(scored))


def _finite(rollout: Rollout, reverse_kl: float) -> float:
    if not math.isfinite(reverse_kl):
        raise UserError(
            f"{rollout.prompt.origin}: the reverse KL of this completion is {reverse_kl}: the model or its teacher "
            "give log-probs that are not finite in this precision; use --dtype fp32"
        )
    return reverse_kl


def _chunks(prompts: Sequence[Prompt], places: Sequence[int], size: int) -> Iterator[list[tuple[int, Prompt]]]:
    for start in range(0, len(places), size):
        yield [(place, prompts[place]) for place in places[start : start + size]]
