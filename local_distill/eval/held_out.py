"""How far the student is from the teacher on prompts it never trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from local_distill.batch import Prompt, Rollout, RolloutEngine, Teacher
from local_distill.eval.statistics import mean_over_questions, ratio_of_sums
from local_distill.eval.verifying import MathVerifier, Verifier, math_verify_is_here
from local_distill.models.comparison import Comparison, compare
from local_distill.models.tokenization import texts_of
from local_distill.process.distributed import gather_lists, on_every_process
from local_distill.runs.evaluations import SHOWN_TOP, Completion, Evaluation, Piece
from local_distill.training.batching import MicroBatches, collate, share_of_process
from local_distill.training.device_memory import naming_the_number, score

SHOWN = 4
"""Held-out prompts whose completions are kept for people to read."""

DECIMALS = 5
"""Of what is written for each token: files of half the size, and finer than float32 log-probs are."""

DRAW = -1
"""The step whose random numbers every evaluation draws: no training step's, and the same at each evaluation,
so that only the student differs."""

LEAST_SHARE = 0.5
"""Of the prompts that must have an answer, or the accuracy is of too few of them to be followed."""


class NoEvaluation:
    """A run without held-out prompts has nothing to evaluate."""

    def evaluate(self, step: int) -> None:
        """Measure nothing."""
        del step


class _Sample(NamedTuple):
    """One rollout in numbers. divergence: its tokens' reverse KL, summed, nats. correct: None where nothing says."""

    tokens: int
    truncated: bool
    divergence: float
    correct: bool | None


T = TypeVar("T")


class HeldOutEvaluator:
    """Reverse KL on held-out prompts, and a few completions in words.

    sampler: one rollout a prompt at temperature 1 and top-p 1: the expectation of s_t − q_t over the
    student's own distribution is the reverse KL; over truncated or cooled samples it is not.
    reader: one completion a prompt for people to read. micro_batch: most rollouts that are scored together,
    within the bounds of ``micro_batches``. verifier: compares samples with the answers of the prompts that have one;
    None where accuracy is not measured.
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
        verifier: Verifier | None = None,
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
        self._verifier = verifier

    def evaluate(self, step: int) -> Evaluation:
        """See Evaluator."""
        samples = self._score(self._sampler, self._prompts, self._in_numbers)
        tokens = [sample.tokens for sample in samples]
        reverse_kl, standard_error = ratio_of_sums([sample.divergence for sample in samples], tokens)
        verdicts = [float(sample.correct) for sample in samples if sample.correct is not None]
        accuracy = mean_over_questions(verdicts)
        return Evaluation(
            step=step,
            reverse_kl=reverse_kl,
            standard_error=standard_error,
            length=sum(tokens) / len(samples),
            truncated=sum(sample.truncated for sample in samples) / len(samples),
            completions=tuple(self._score(self._reader, self._prompts[:SHOWN], self._in_words, SHOWN_TOP)),
            accuracy=accuracy.mean,
            accuracy_standard_error=accuracy.standard_error,
        )

    @torch.no_grad()
    def _score(
        self,
        engine: RolloutEngine,
        prompts: Sequence[Prompt],
        tell: Callable[[Rollout, Comparison], T],
        top: int = 0,
    ) -> list[T]:
        """Sample and score the prompts, shared out over the processes; what ``tell`` makes of each rollout, in the
        order of the prompts, on all processes."""
        accelerator = self._accelerator
        own = share_of_process(prompts, accelerator.process_index, accelerator.num_processes)
        rollouts = on_every_process(lambda: engine.sample(own, DRAW, finished=self._teacher.prepare))
        busiest = -(-len(prompts) // accelerator.num_processes)
        told: list[tuple[int, T]] = []
        self._student.eval()
        for part in self._micro_batches.split(rollouts, -(-busiest // self._micro_batch)):
            batch = on_every_process(partial(score, self._teacher, collate(part, self._pad_id)))
            with naming_the_number("evaluation", batch.tokens):
                each = compare(self._student, batch, top).split(batch.tokens.lengths)
            told += [(rollout.position, tell(rollout, one)) for rollout, one in zip(part, each, strict=False)]
        return [one for _, one in sorted(gather_lists(accelerator, told), key=lambda pair: pair[0])]

    def _in_numbers(self, rollout: Rollout, compared: Comparison) -> _Sample:
        divergence = float(compared.reverse_kl.double().sum())
        return _Sample(len(rollout.completion), rollout.finish == "length", divergence, self._is_correct(rollout))

    def _is_correct(self, rollout: Rollout) -> bool | None:
        if self._verifier is None or rollout.prompt.answer is None:
            return None
        text = str(self._tokenizer.decode(rollout.completion, skip_special_tokens=True))
        return self._verifier.verdict(text, rollout.prompt.answer).correct

    def _in_words(self, rollout: Rollout, compared: Comparison) -> Completion:
        return Completion(
            prompt=rollout.prompt.text,
            text=self._tokenizer.decode(rollout.completion, skip_special_tokens=True),
            tokens=len(rollout.completion),
            finish=rollout.finish,
            reverse_kl=float(compared.reverse_kl.double().sum()) / max(len(rollout.completion), 1),
            pieces=pieces_of(self._tokenizer, rollout.completion.tolist(), compared),
        )


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], compared: Comparison) -> tuple[Piece, ...]:
    """The tokens of one completion with what both models make of them, for people to read."""
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
