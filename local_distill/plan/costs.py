"""What each phase holds besides weights, gradients and moments: found by rehearsing the code of that phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from local_distill.batch import HeadStates, ScoredBatch, TokenBatch
from local_distill.head.logprobs import Head, TopTokens, read_tokens, read_top_tokens
from local_distill.losses.registry import Loss
from local_distill.models.files import causal_lm
from local_distill.models.scorer import TokenScorer, head_of
from local_distill.plan.rehearsal import DEVICE, Stage, Tally
from local_distill.rollouts.decoding import TokenCache, next_logits
from local_distill.rollouts.packing import packed_weights
from local_distill.rollouts.sampling import NucleusSampling
from local_distill.teachers.student_base import BaseOfStudent


@dataclass(frozen=True)
class Lengths:
    """Of the longest rollout, in tokens."""

    prompt: int
    completion: int

    @property
    def whole(self) -> int:
        """Both together."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Sampling:
    """Bytes while rollouts are decoded. copies: of weights, for decoding. cache: keys and values at the last token.
    work: all else, at most."""

    copies: float = 0.0
    cache: float = 0.0
    work: float = 0.0


@dataclass(frozen=True)
class Training:
    """Bytes of one micro-batch. kept: by forward, for backward. work: the head, the loss and backward, at most."""

    kept: float = 0.0
    work: float = 0.0


class _Decoding(NamedTuple):
    copies: float
    cache: float
    peak: float


@dataclass(frozen=True)
class _Line:
    """What grows in proportion to rollouts, from what was found for 2 and for 3 of them.

    One rollout alone has no padding, and attention no mask; 2 are the first of any number.
    """

    two: float
    three: float

    def __call__(self, rollouts: float) -> float:
        return max(0.0, self.two + (rollouts - 2) * (self.three - self.two))


class Costs:
    """Of one student and one teacher.

    stage: where both are, fake; the student with its adapter. teacher: None for one that is elsewhere, the student for
    its own base. loss, choose: for samples that are the student's own. dtype: of the products, under autocast for
    a student with float32 weights. packs: linear layers are packed while sampling, as on a processor.
    """

    def __init__(
        self, stage: Stage, student: nn.Module, teacher: nn.Module | None, loss: Loss, choose: NucleusSampling, *,
        dtype: torch.dtype, under_autocast: bool, packs: bool, vocab_size: int, top_k: int, lengths: Lengths,
    ) -> None:  # fmt: skip
        self._stage = stage
        self._student = TokenScorer(student, vocab_size)
        self._teacher: Any = None
        if teacher is not None:
            own_base = teacher is student
            self._teacher = BaseOfStudent(self._student) if own_base else TokenScorer(teacher, vocab_size).eval()
            self._teacher_network = causal_lm(teacher)
        self._loss, self._choose = loss, choose
        self._dtype, self._under_autocast, self._packs = dtype, under_autocast, packs
        self._vocab_size, self._top_k, self._lengths = vocab_size, top_k, lengths
        for parameter in student.parameters():
            if parameter.requires_grad:  # gradients are counted apart: here, each is gone when it is made
                parameter.register_post_accumulate_grad_hook(_forget_gradient)  # type: ignore[no-untyped-call]
        self._reading_prompts = cache(self._prefill)
        self._last_token = cache(self._decode)
        self._training_body = cache(self._train_body)
        self._training_head = cache(self._train_head)
        self._scoring_body = cache(self._score_body)
        self._scoring_head = cache(self._score_head)

    def sampling(self, rollouts: int, group_size: int) -> Sampling:
        """Our own loop's, ``rollouts`` at a time; each prompt is read once for its ``group_size`` rollouts."""
        self._student.eval()
        group_size = min(group_size, rollouts)
        two, three = self._last_token(2), self._last_token(3)
        copies = two.copies
        cached = _Line(two.cache, three.cache)(rollouts)
        decoding = _Line(two.peak, three.peak)(rollouts)
        reading = _Line(*(self._reading_prompts(n, group_size) for n in (2, 3)))(rollouts / group_size)
        return Sampling(copies, cached, max(0.0, max(decoding, reading) - copies - cached))

    def scoring(self, rollouts: int) -> float:
        """Bytes while a micro-batch goes through the teacher, at most."""
        if self._teacher is None:
            return 0.0
        kept, peak = self._body(self._scoring_body, rollouts)
        return max(peak, kept + self._scoring_head(rollouts * self._lengths.completion))

    def training(self, rollouts: int) -> Training:
        """Of a micro-batch of so many of the longest rollouts."""
        self._student.train()
        kept, peak = self._body(self._training_body, rollouts)
        forward, backward = self._training_head(rollouts * self._lengths.completion)
        return Training(kept, max(forward, peak - kept + backward))

    def training_head(self, rollouts: int) -> Training:
        """Without the body, for a model of which that cannot be rehearsed."""
        return Training(0.0, max(self._training_head(rollouts * self._lengths.completion)))

    def answers(self) -> float:
        """Bytes of a completion token's scores, which all are held from scoring to the end of training."""
        numbers = 4 + 4 * 8  # the batch itself: the sampler's log-prob, three indices and the mask
        if self._loss.needs == "whole" and self._teacher is not None:
            head = self._teacher_network.get_output_embeddings().weight
            return numbers + head.shape[1] * head.element_size()
        return numbers + 2 * 4 + (self._top_k * (8 + 4) + 4 if self._loss.needs == "top" else 0)

    def _body(self, found: Callable[[int], tuple[float, float]], rollouts: int) -> tuple[float, float]:
        """(kept, peak) of ``found``, for any number of rollouts."""
        if rollouts == 1:
            return found(1)
        kept, peak = (_Line(two, three)(rollouts) for two, three in zip(found(2), found(3), strict=True))
        return kept, peak

    def _train_body(self, rows: int) -> tuple[float, float]:
        """(bytes that forward keeps, most of them while it and backward run), head and loss left out."""

        def act(tally: Tally) -> tuple[float, float]:
            with self._autocast():
                loss = self._student(self._batch(rows), _sum_of_states)
            kept = tally.now
            loss.backward()
            return kept, tally.peak

        return self._stage.rehearse(act)

    def _train_head(self, tokens: int) -> tuple[float, float]:
        """(most bytes in forward, most in backward) of head and loss, the hidden states left out."""

        def act(tally: Tally) -> tuple[float, float]:
            head = head_of(causal_lm(self._student.model), self._vocab_size)
            hidden = torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype, requires_grad=True)
            read = self._loss.reading(self._scored(tokens), 0)
            before = tally.now
            with self._autocast():
                total, _ = read(hidden, head, torch.zeros(tokens, dtype=torch.long))
            forward = tally.peak - before
            tally.forget_peak()
            total.backward()  # type: ignore[no-untyped-call]
            return forward, tally.peak - before

        return self._stage.rehearse(act)

    @torch.no_grad()
    def _score_body(self, rows: int) -> tuple[float, float]:
        def act(tally: Tally) -> tuple[float, float]:
            states = self._teacher.states(self._batch(rows))
            kept, peak = tally.now, tally.peak
            del states
            return kept, peak

        return self._stage.rehearse(act)

    @torch.no_grad()
    def _score_head(self, tokens: int) -> float:
        if self._loss.needs == "whole":
            return 0.0

        def act(tally: Tally) -> float:
            states, before = self._states(tokens), tally.now
            targets = torch.zeros(tokens, dtype=torch.long)
            reading = read_tokens(states.hidden, states.head, targets)
            top = read_top_tokens(states.hidden, states.head, self._top_k) if self._loss.needs == "top" else None
            del reading, top  # both are there until now
            return tally.peak - before

        return self._stage.rehearse(act)

    def _prefill(self, prompts: int, group_size: int) -> float:
        """Most bytes while prompts are read, and their keys and values given to each rollout of their group."""

        def act(tally: Tally) -> float:
            with self._decoding():
                cache, logits = self._read_prompts(prompts, self._lengths.prompt)
                copies = torch.zeros(prompts * group_size, dtype=torch.long)
                cache.take_rows(copies)
                self._choose(logits[copies], torch.zeros(len(copies), dtype=torch.float64))
                return tally.peak

        return self._stage.rehearse(act)

    def _decode(self, rows: int) -> _Decoding:
        """The last token, when keys and values are longest."""

        def act(tally: Tally) -> _Decoding:
            with self._decoding():
                cache, last = self._read_prompts(rows, self._lengths.whole - 1)
                copies = tally.now - cache.nbytes - last.untyped_storage().nbytes()
                tally.forget_peak()
                logits = self._next_logits(torch.zeros(rows, 1, dtype=torch.long), self._lengths.whole, cache)
                self._choose(logits, torch.zeros(rows, dtype=torch.float64))
                return _Decoding(copies, cache.nbytes, tally.peak)

        return self._stage.rehearse(act)

    def _read_prompts(self, rows: int, length: int) -> tuple[TokenCache, Tensor]:
        cache = TokenCache.of(self._student.model)
        return cache, self._next_logits(torch.zeros(rows, length, dtype=torch.long), length, cache)

    def _next_logits(self, ids: Tensor, length: int, cache: TokenCache) -> Tensor:
        """ids: (rows, new tokens). length: tokens with these."""
        mask = torch.ones(len(ids), length, dtype=torch.long)
        return next_logits(self._student.model, ids, mask, cache, self._vocab_size)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        packed = packed_weights(self._student.model) if self._packs else nullcontext()
        with torch.no_grad(), self._autocast(), packed:
            yield

    def _autocast(self) -> AbstractContextManager[Any]:
        """fp16 is counted as bf16, which is as large."""
        low = self._under_autocast and self._dtype != torch.float32
        return torch.autocast(DEVICE.type, torch.bfloat16) if low else nullcontext()

    def _batch(self, rows: int) -> TokenBatch:
        ids = torch.zeros(rows, self._lengths.whole, dtype=torch.long)
        tokens = rows * self._lengths.completion
        places = torch.zeros(tokens, dtype=torch.long)
        mask = cast(Tensor, None) if rows == 1 else torch.ones_like(ids)  # a mask of ones alone is dropped by attention
        lengths = (self._lengths.completion,) * rows
        return TokenBatch(ids, mask, places, places, torch.zeros(tokens), lengths)

    def _scored(self, tokens: int) -> ScoredBatch:
        """What the loss is given besides the student."""
        whole = self._loss.needs == "whole"
        numbers = torch.zeros(tokens)
        top = None
        if self._loss.needs == "top":
            top = TopTokens(torch.zeros(tokens, self._top_k, dtype=torch.long), torch.zeros(tokens, self._top_k + 1))
        places = torch.zeros(tokens, dtype=torch.long)
        batch = TokenBatch(places[None], places[None], places, places, numbers, (tokens,))
        return ScoredBatch(batch, numbers, numbers, top, self._states(tokens) if whole else None)

    def _states(self, tokens: int) -> HeadStates:
        head = head_of(self._teacher_network, self._vocab_size)
        return HeadStates(torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype), head)


def _sum_of_states(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """A loss that costs nothing."""
    del head, targets
    return hidden.sum()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
