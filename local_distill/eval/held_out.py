"""How far the student is from the teacher on prompts it never trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from local_distill.batch import Prompt, Rollout, RolloutEngine, ScoredBatch, Teacher, TokenBatch
from local_distill.eval.statistics import Total, mean_over_questions, mean_per_token
from local_distill.eval.verifying import MathVerifier, Verifier, math_verify_is_here
from local_distill.models.comparison import Comparison, compare
from local_distill.models.tokenization import texts_of
from local_distill.process.distributed import gather_lists, on_every_process
from local_distill.process.interruption import GivenUp, NeverStopped, StopRequest, give_up_if_asked
from local_distill.runs.evaluations import SHOWN_TOP, Completion, Evaluation, Piece
from local_distill.training.batching import MicroBatches, collate, share_of_process
from local_distill.training.device_memory import naming_the_number, score

SHOWN = 4
"""Held-out prompts whose completions are kept for people to read."""

SHOWING = "sampling what people read"
"""What people are told while those are sampled."""

DECIMALS = 5
"""Of what is written for each token: files of half the size, and finer than float32 log-probs are."""

DRAW = -1
"""The step whose random numbers every evaluation draws: no training step's, and the same at each evaluation,
so that only the student differs."""

LEAST_SHARE = 0.5
"""Of the prompts that must have an answer, or the accuracy is of too few of them to be followed."""
NEVER = NeverStopped()


class NoEvaluation:
    """A run without held-out prompts has nothing to evaluate."""

    def evaluate(self, step: int, stop: StopRequest = NEVER) -> None:
        """Measure nothing."""
        del step, stop


class _Sample(NamedTuple):
    """A rollout is told in numbers. reverse_kl: of its tokens, nats. correct: None where nothing says."""

    reverse_kl: Total
    truncated: bool
    correct: bool | None


T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutEvaluator:
    """The reverse KL is measured on held-out prompts, and a few completions are kept in words.

    sampler: one rollout a prompt at temperature 1 and top-p 1: the expectation of s_t − q_t over the
    student's own distribution is the reverse KL; over truncated or cooled samples it is not.
    reader: one completion a prompt for people to read. micro_batch: most rollouts that are scored together,
    within the bounds of ``micro_batches``. verifier: compares samples with the answers of the prompts that have one;
    None where accuracy is not measured. doing: told what is done now, how much of it is done, and of how much.
    """

    accelerator: Accelerator
    student: nn.Module
    teacher: Teacher
    sampler: RolloutEngine
    reader: RolloutEngine
    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    micro_batch: int
    micro_batches: MicroBatches
    verifier: Verifier | None = None
    doing: Callable[[str, int, int], None] = lambda *_: None

    def evaluate(self, step: int, stop: StopRequest = NEVER) -> Evaluation | None:
        """Measure the student as it is after ``step`` updates; collective. None where it was asked to stop."""
        try:
            return self._evaluate(step, stop)
        except GivenUp:
            return None

    def _evaluate(self, step: int, stop: StopRequest) -> Evaluation:
        now = "evaluating" if step else "evaluating before training"
        samples = self._score(stop, now, self.sampler, self.prompts, self._in_numbers)
        reverse_kl = mean_per_token([sample.reverse_kl for sample in samples])
        accuracy = mean_over_questions([float(each.correct) for each in samples if each.correct is not None])
        return Evaluation(
            step=step,
            reverse_kl=reverse_kl.mean,
            standard_error=reverse_kl.standard_error,
            length=sum(sample.reverse_kl.tokens for sample in samples) / len(samples),
            truncated=sum(sample.truncated for sample in samples) / len(samples),
            completions=tuple(self._score(stop, SHOWING, self.reader, self.prompts[:SHOWN], self._in_words, SHOWN_TOP)),
            accuracy=accuracy.mean,
            accuracy_standard_error=accuracy.standard_error,
        )

    def _score(
        self,
        stop: StopRequest,
        now: str,
        engine: RolloutEngine,
        prompts: Sequence[Prompt],
        tell: Callable[[Rollout, Comparison], T],
        top: int = 0,
    ) -> list[T]:
        """Sample and score the prompts, shared out over the processes. now: what people are told of it.

        Returns what ``tell`` makes of each rollout, in the order of the prompts, on all processes. Raises GivenUp on
        all of them where one was asked to stop.
        """
        accelerator = self.accelerator
        own = share_of_process(prompts, accelerator.process_index, accelerator.num_processes)
        sampled: set[int] = set()

        def sample() -> list[Rollout]:
            with torch.no_grad(), suppress(GivenUp), stop.giving_up():
                return engine.sample(own, DRAW, finished=finished)
            return []

        def finished(rollout: Rollout) -> None:
            self.teacher.prepare(rollout)
            give_up_if_asked()
            sampled.add(rollout.position)  # once, though it may be told of again
            self.doing(now, min(len(sampled) * accelerator.num_processes, len(prompts)), len(prompts))

        self.doing(now, 0, len(prompts))
        rollouts = on_every_process(sample)
        if stop.agreed(accelerator):
            raise GivenUp
        busiest = -(-len(prompts) // accelerator.num_processes)
        parts = self.micro_batches.split(rollouts, -(-busiest // self.micro_batch))
        self.student.eval()
        self.doing(f"{now}: scoring", 0, 0)
        compared = compare_rollouts(
            self.student, self._until(stop, parts), self.pad_id, top=top,
            context=partial(naming_the_number, "evaluation"),
            score=lambda batch: on_every_process(partial(score, self.teacher, batch)),
        )  # fmt: skip
        told = [(rollout.position, tell(rollout, each)) for rollout, each in compared]
        return [one for _, one in sorted(gather_lists(accelerator, told), key=lambda pair: pair[0])]

    def _until(self, stop: StopRequest, parts: Iterable[Sequence[Rollout]]) -> Iterator[Sequence[Rollout]]:
        for part in parts:
            if stop.agreed(self.accelerator):
                raise GivenUp
            yield part

    def _in_numbers(self, rollout: Rollout, compared: Comparison) -> _Sample:
        return _Sample(total_of(compared), rollout.finish == "length", self._is_correct(rollout))

    def _is_correct(self, rollout: Rollout) -> bool | None:
        if self.verifier is None or rollout.prompt.answer is None:
            return None
        return self.verifier.verdict(self._text(rollout), rollout.prompt.answer).correct

    def _in_words(self, rollout: Rollout, compared: Comparison) -> Completion:
        total = total_of(compared)
        return Completion(
            prompt=rollout.prompt.text,
            text=self._text(rollout),
            tokens=total.tokens,
            finish=rollout.finish,
            reverse_kl=total.sum / max(total.tokens, 1),
            pieces=pieces_of(self.tokenizer, rollout.completion.tolist(), compared),
        )

    def _text(self, rollout: Rollout) -> str:
        return str(self.tokenizer.decode(rollout.completion, skip_special_tokens=True))


@torch.no_grad()
def compare_rollouts(
    student: nn.Module, parts: Iterable[Sequence[Rollout]], pad_id: int, *, score: Callable[[TokenBatch], ScoredBatch],
    context: Callable[[TokenBatch], AbstractContextManager[None]], top: int = 0,
) -> Iterator[tuple[Rollout, Comparison]]:  # fmt: skip
    """Yield each rollout with what both models make of its tokens, one micro-batch of ``parts`` after another.

    student: a TokenScorer, which runs in ``context``. score: asks the teacher. top: see ``compare``.
    """
    for part in parts:
        batch = score(collate(part, pad_id))
        with context(batch.tokens):
            each = compare(student, batch, top).split(batch.tokens.lengths)
        yield from zip(part, each, strict=False)  # one that is empty has a comparison of no tokens


def total_of(compared: Comparison) -> Total:
    """Sum the reverse KL over the tokens of one completion, nats."""
    return Total(float(compared.reverse_kl.double().sum()), len(compared.reverse_kl))


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], compared: Comparison) -> tuple[Piece, ...]:
    """Return the tokens of one completion with what both models make of them, for people to read."""
    texts = texts_of(tokenizer, ids, compared.likeliest.tolist())
    numbers = map(_rounded, (compared.student, compared.teacher, compared.reverse_kl, compared.likeliest_logprobs))
    return tuple(
        Piece(text, s, q, reverse_kl, tuple(zip(likeliest, logprobs, strict=True)))
        for (text, likeliest), s, q, reverse_kl, logprobs in zip(texts, *numbers, strict=True)
    )


def _rounded(numbers: Tensor) -> Any:
    return numbers.double().round(decimals=DECIMALS).tolist()


def verifier_of(prompts: Sequence[Prompt], say: Callable[[str], None]) -> tuple[tuple[Prompt, ...], Verifier | None]:
    """Return the prompts with the answers that can be compared alone, and what compares them, if it is worth it.

    say: told in one line why there is no accuracy, where prompts have answers.
    """
    answered = sum(prompt.answer is not None for prompt in prompts)
    if not answered:
        return tuple(prompts), None
    there_are = f"{answered} of {len(prompts)} held-out prompts have answers, but eval/accuracy is not measured"
    if not math_verify_is_here():
        say(f"{there_are}: math-verify is not installed; pip install 'local-distill[eval]'")
        return tuple(prompts), None
    verifier = MathVerifier()
    kept = tuple(p if p.answer and verifier.readable(p.answer) else replace(p, answer=None) for p in prompts)
    readable = sum(prompt.answer is not None for prompt in kept)
    if readable < LEAST_SHARE * len(prompts):
        verifier.close()
        say(f"{there_are}: {readable} of them can be verified, at least half of the prompts must")
        return tuple(prompts), None
    return kept, verifier
