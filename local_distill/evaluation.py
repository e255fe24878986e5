"""How far the student is from the teacher on prompts it never trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from local_distill.batching import MicroBatches, collate, share_of_process
from local_distill.distributed import gather_lists, on_every_process
from local_distill.losses import exact_reverse_kl
from local_distill.types import Completion, Evaluation, Prompt, Rollout, RolloutEngine, ScoredBatch, Teacher

SHOWN = 4
"""Held-out prompts whose completions are kept for people to read."""

DRAW = -1
"""The step whose random numbers every evaluation draws: no training step's, and the same at each evaluation,
so that only the student differs."""


class Evaluator(Protocol):
    """What the loop asks before, during and after training."""

    def evaluate(self, step: int) -> Evaluation | None:
        """The student after ``step`` updates, or None when nothing is held out; collective."""
        ...


class NoEvaluation:
    """For a run without held-out prompts."""

    def evaluate(self, step: int) -> None:
        """Nothing to say."""
        del step


@dataclass(frozen=True)
class _Scored:
    """One rollout and the sum of its tokens' reverse KL, nats."""

    rollout: Rollout
    divergence: float


class HeldOutEvaluator:
    """Unbiased reverse KL on held-out prompts, and a few completions in words.

    sampler: one rollout a prompt at temperature 1 and top-p 1: the expectation of s_t − q_t over the
    student's own distribution is the reverse KL; over truncated or cooled samples it is not.
    reader: one completion a prompt for people to read. micro_batch: most rollouts that are scored together,
    within the bounds of ``micro_batches``.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        teacher: Teacher,
        sampler: RolloutEngine,
        reader: RolloutEngine,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        pad_id: int,
        micro_batch: int,
        micro_batches: MicroBatches,
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._teacher = teacher
        self._sampler = sampler
        self._reader = reader
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        self._micro_batch = micro_batch
        self._micro_batches = micro_batches

    def evaluate(self, step: int) -> Evaluation:
        """See Evaluator."""
        sampled = self._score(self._sampler, self._prompts)
        reverse_kl, standard_error = ratio_of_sums(
            [s.divergence for s in sampled], [len(s.rollout.completion) for s in sampled]
        )
        return Evaluation(
            step=step,
            reverse_kl=reverse_kl,
            standard_error=standard_error,
            length=sum(len(s.rollout.completion) for s in sampled) / len(sampled),
            truncated=sum(s.rollout.finish == "length" for s in sampled) / len(sampled),
            completions=tuple(self._in_words(s) for s in self._score(self._reader, self._prompts[:SHOWN])),
        )

    @torch.no_grad()
    def _score(self, engine: RolloutEngine, prompts: Sequence[Prompt]) -> list[_Scored]:
        """Sample and score the prompts, shared out over the processes; all results on all of them, in order."""
        accelerator = self._accelerator
        own = share_of_process(prompts, accelerator.process_index, accelerator.num_processes)
        rollouts = on_every_process(lambda: engine.sample(own, DRAW, finished=self._teacher.prepare))
        busiest = -(-len(prompts) // accelerator.num_processes)
        scored: list[_Scored] = []
        self._student.eval()
        for part in self._micro_batches.split(rollouts, -(-busiest // self._micro_batch)):
            batch = self._teacher.score(collate(part, self._pad_id))
            divergence = self._divergence(batch)  # (N,) nats
            sums = [d.double().sum() for d in torch.split(divergence, list(batch.tokens.lengths))]
            scored += [_Scored(rollout, float(total)) for rollout, total in zip(part, sums, strict=False)]
        return sorted(gather_lists(accelerator, scored), key=lambda s: s.rollout.position)

    def _divergence(self, batch: ScoredBatch) -> Tensor:
        """At every completion token, (N,) nats: the exact reverse KL where the teacher gives its whole
        distribution, else the one-sample estimate s_t − q_t. Both have the same expectation."""
        if batch.states is not None:
            exact: Tensor = self._student(batch.tokens, exact_reverse_kl(batch.states))
            return exact
        sampled: Tensor = self._student(batch.tokens).logprobs - batch.sampled_logprobs
        return sampled

    def _in_words(self, scored: _Scored) -> Completion:
        rollout = scored.rollout
        return Completion(
            prompt=rollout.prompt.text,
            text=self._tokenizer.decode(rollout.completion, skip_special_tokens=True),
            tokens=len(rollout.completion),
            finish=rollout.finish,
            reverse_kl=scored.divergence / max(len(rollout.completion), 1),
        )


def ratio_of_sums(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Σ sums / Σ counts and its standard error, the pairs taken as independent (linearised ratio estimator).

    Tokens of one completion are not independent, so the completions are what is counted.
    """
    n, total = len(counts), max(sum(counts), 1)
    mean = sum(sums) / total
    if n < 2:
        return mean, float("nan")
    residuals = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return mean, float((residuals * n / (n - 1)) ** 0.5 / total)
