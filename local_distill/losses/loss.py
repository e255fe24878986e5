"""Losses: from a scored batch to a reading of the student that ends in a summed loss.

Two families. The sampled-token losses know one number of the teacher's for each token and weigh that
token by its advantage. The divergences compare whole distributions, of the vocabulary or of a few top
tokens and a tail. Both work on a chunk of the student's distributions, (n, V), and give the loss and its
gradient on the logits; ``head_loss`` walks the chunks. Every loss also says, for each token, how the
student and the teacher differ there; those numbers come from what the loss has in hand anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.linalg import vecdot

from local_distill.batch import (
    HeadStates,
    SampledLogprobs,
    ScoredBatch,
    TeacherView,
    TokenBatch,
    TopLogprobs,
)
from local_distill.head.chunked_loss import ChunkLoss, SummedLoss, summed_loss
from local_distill.head.divergences import (
    Distribution,
    Divergence,
    on_support,
    top_overlap,
)
from local_distill.head.logprobs import (
    Head,
    distribution,
    read_tokens,
)
from local_distill.losses.sampled_token import (
    Objective,
    discounted,
    policy_gradient,
    reverse_kl_advantages,
    value_and_slope,
)
from local_distill.losses.sampler_mismatch import SamplerMismatch

OVERLAP_TOP = 8
"""Top tokens of student and teacher that are compared for the metric top_overlap."""


class LossReading(Protocol):
    """A reading of the student's hidden states that ends in a loss; see TokenScorer."""

    def __call__(self, hidden: Tensor, head: Head, targets: Tensor) -> SummedLoss:
        """From the student's (N, H) states, its head and the (N,) tokens that were sampled."""
        ...


class Loss(Protocol):
    """A loss, before it has seen a batch."""

    needs: ClassVar[TeacherView]
    """What the teacher must give for it."""

    @property
    def uses_old_logprobs(self) -> bool:
        """Whether ratios are taken against the student before its first update of the step, not the sampler."""
        ...

    def reading(self, batch: ScoredBatch, substep: int) -> LossReading:
        """The loss of one micro-batch. substep: 0 for a step's first update."""
        ...


@dataclass(frozen=True)
class SampledTokenLoss:
    """−Σ A_t s_t and its relatives; see objectives.

    later: the objective of a step's second and later updates, when the policy has moved.
    """

    objective: Objective
    later: Objective
    coef: float
    discount: float
    mismatch: SamplerMismatch | None = None
    needs: ClassVar[TeacherView] = TeacherView.tokens

    @property
    def uses_old_logprobs(self) -> bool:
        """Plain policy gradient has no ratio until the policy moves; then it is measured from where it started."""
        return self.objective is policy_gradient

    def reading(self, batch: ScoredBatch, substep: int) -> LossReading:
        """See Loss."""
        objective = self.later if substep else self.objective
        return _SampledTokens(self, objective, batch.tokens, batch.signal_as(SampledLogprobs), batch.behaviour)


@dataclass(frozen=True)
class _SampledTokens:
    loss: SampledTokenLoss
    objective: Objective
    tokens: TokenBatch
    teacher: SampledLogprobs
    behaviour: Tensor

    def __call__(self, hidden: Tensor, head: Head, targets: Tensor) -> SummedLoss:
        delta = None
        if self.loss.discount:  # a token answers for later ones, so all must be known before the first chunk's gradient
            delta = read_tokens(hidden.detach(), head, targets).logprobs - self.teacher.logprobs
            delta = discounted(delta, self.tokens.lengths, self.loss.discount)
        names = (
            "reverse_kl",
            "k3",
            "entropy",
            "ratio",
            "ratio_squared",
            "ratio_clipped",
            *_mismatch_names(self.loss.mismatch),
        )
        return _with_entropy_of(self.teacher, summed_loss(hidden, head, partial(self._chunk, targets, delta), names))

    def _chunk(self, targets: Tensor, future: Tensor | None, part: slice, student: Distribution) -> ChunkLoss:
        chosen = targets[part, None]
        s, q, b = student.logprobs.gather(1, chosen).squeeze(1), self.teacher.logprobs[part], self.behaviour[part]
        delta = s - q
        advantages = reverse_kl_advantages(delta if future is None else future[part], self.loss.coef)
        loss, slope = value_and_slope(self.objective, s, advantages, b)
        ratio = (s - b).exp()
        clipped = ((slope == 0) & (advantages != 0)).to(s.dtype)
        mismatch = _mismatch_stats(self.loss.mismatch, student, self.tokens, part)
        stats = (delta, k3(delta), student.entropy(), ratio, ratio**2, clipped, *mismatch)
        # ∂s/∂z = onehot(y) − p
        grad = student.probs.mul_(-slope[:, None]).scatter_add_(1, chosen, slope[:, None])
        return ChunkLoss(loss, grad, stats)


@dataclass(frozen=True)
class WholeDistributionLoss:
    """coef · Σ D(student, teacher) over the whole vocabulary, or over the student's own top tokens and a tail.

    student_top_k: how many of the student's likeliest tokens stand for themselves; None for all tokens.
    """

    divergence: Divergence
    coef: float = 1.0
    student_top_k: int | None = None
    mismatch: SamplerMismatch | None = None
    uses_old_logprobs: ClassVar[bool] = False
    needs: ClassVar[TeacherView] = TeacherView.whole_distribution

    def reading(self, batch: ScoredBatch, substep: int) -> LossReading:
        """See Loss."""
        del substep
        return partial(self._read, batch.tokens, batch.signal_as(HeadStates))

    def _read(self, tokens: TokenBatch, teacher: HeadStates, hidden: Tensor, head: Head, targets: Tensor) -> SummedLoss:
        del targets
        matrix = teacher.head.matrix(teacher.hidden.dtype)
        names = ("reverse_kl", "entropy", "teacher_entropy", "top_overlap", *_mismatch_names(self.mismatch))
        return summed_loss(hidden, head, partial(self._chunk, tokens, teacher, matrix), names)

    def _chunk(
        self, tokens: TokenBatch, states: HeadStates, matrix: Tensor, part: slice, student: Distribution
    ) -> ChunkLoss:
        teacher = distribution(states.hidden[part], states.head, matrix)
        stats = (
            vecdot(student.probs, student.logprobs - teacher.logprobs),
            student.entropy(),
            teacher.entropy(),
            top_overlap(student, teacher.logprobs.topk(OVERLAP_TOP).indices),
            *_mismatch_stats(self.mismatch, student, tokens, part),
        )
        if self.student_top_k is None:
            value, grad = self.divergence(student, teacher)
        else:
            support = student.logprobs.topk(self.student_top_k).indices
            value, grad = on_support(self.divergence, student, support, teacher.with_tail(support))
        return ChunkLoss(self.coef * value.sum(), grad.mul_(self.coef), stats)


@dataclass(frozen=True)
class TopTokensLoss:
    """coef · Σ D over the teacher's top tokens and a tail that holds all others.

    Merging outcomes can only lower a divergence, so this is a lower bound of the whole one; it needs
    k + 1 numbers a position of a teacher that cannot hand over its whole distribution.
    """

    divergence: Divergence
    coef: float = 1.0
    mismatch: SamplerMismatch | None = None
    uses_old_logprobs: ClassVar[bool] = False
    needs: ClassVar[TeacherView] = TeacherView.top_tokens

    def reading(self, batch: ScoredBatch, substep: int) -> LossReading:
        """See Loss."""
        del substep
        return partial(self._read, batch.tokens, batch.signal_as(TopLogprobs))

    def _read(
        self, tokens: TokenBatch, teacher: TopLogprobs, hidden: Tensor, head: Head, targets: Tensor
    ) -> SummedLoss:
        names = ("reverse_kl", "k3", "entropy", "top_overlap", *_mismatch_names(self.mismatch))
        del targets
        return _with_entropy_of(teacher, summed_loss(hidden, head, partial(self._chunk, tokens, teacher), names))

    def _chunk(self, tokens: TokenBatch, teacher: TopLogprobs, part: slice, student: Distribution) -> ChunkLoss:
        support = teacher.top.ids[part]
        delta = student.logprobs.gather(1, tokens.targets[part, None]).squeeze(1) - teacher.logprobs[part]
        mismatch = _mismatch_stats(self.mismatch, student, tokens, part)
        stats = (delta, k3(delta), student.entropy(), top_overlap(student, support), *mismatch)
        value, grad = on_support(self.divergence, student, support, Distribution.of(teacher.top.logprobs[part]))
        return ChunkLoss(self.coef * value.sum(), grad.mul_(self.coef), stats)


def _mismatch_names(mismatch: SamplerMismatch | None) -> tuple[str, ...]:
    return () if mismatch is None else mismatch.names


def _mismatch_stats(
    mismatch: SamplerMismatch | None, student: Distribution, tokens: TokenBatch, part: slice
) -> tuple[Tensor, ...]:
    """Return what is measured of the sampler, where it is asked for."""
    if mismatch is None:
        return ()
    return mismatch(student, tokens.targets[part], tokens.sampler_logprobs[part])


def _with_entropy_of(teacher: SampledLogprobs, found: SummedLoss) -> SummedLoss:
    """Return a loss that does not see the teacher's whole distribution with its own word on its entropy."""
    if teacher.entropy is None:
        return found
    return SummedLoss(found.total, {**found.stats, "teacher_entropy": teacher.entropy})


def k3(delta: Tensor) -> Tensor:
    """exp(−δ) − 1 + δ, (n,): an estimate of KL(p‖q) from samples of p that is never negative and varies less than
    δ does where p and q are close (Schulman, joschu.net/blog/kl-approx.html)."""
    return torch.expm1(-delta) + delta


def summarise(means: dict[str, float]) -> dict[str, float]:
    """The metrics of a step from the token means of a loss's stats.

    The effective share of the samples is (Σ r)² / (N Σ r²): 1 where all ratios are equal, 1/N where one
    token has all the weight (Kish).
    """
    metrics = dict(means)
    if "ratio" in metrics:
        mean, mean_square = metrics.pop("ratio"), metrics.pop("ratio_squared")
        metrics["ratio/mean"] = mean
        metrics["ratio/effective"] = mean**2 / mean_square if mean_square > 0 else float("nan")
        metrics["ratio/clipped"] = metrics.pop("ratio_clipped")
    return metrics
