"""How far the student's next-token distribution is from the teacher's, as pure functions over a chunk of positions.

    p  student    q  teacher    z  the student's logits, p = softmax(z)

Each takes both distributions over the same outcomes, and returns the divergence at every position,
(n,) nats, with its gradient ∂/∂z, (n, V). The gradient is written out by hand, so that the caller can
turn a chunk of logits into gradients at once and let go of it; for D = Σ_v f(p_v, q_v) it is
p_v (g_v − Σ_u p_u g_u) with g_v = ∂D/∂p_v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.linalg import vecdot


class Distribution(NamedTuple):
    """Distributions over the same V outcomes at n positions. logprobs: (n, V) nats. probs: (n, V), their exp."""

    logprobs: Tensor
    probs: Tensor

    @classmethod
    def of(cls, logprobs: Tensor) -> Distribution:
        """From log-probs alone."""
        return cls(logprobs, logprobs.exp())

    def entropy(self) -> Tensor:
        """−Σ p log p, (n,) nats."""
        return -vecdot(self.probs, self.logprobs)

    def with_tail(self, support: Tensor) -> Distribution:
        """The k tokens of ``support``, and all other tokens together as one last outcome: (n, k + 1).

        support: (n, k) int64, distinct in a row, k < V. The tail is summed from its own tokens: one minus
        the others would be lost in rounding where the tail is small.
        """
        tail = self.logprobs.scatter(1, support, -math.inf).logsumexp(1, keepdim=True)
        return Distribution.of(torch.cat([self.logprobs.gather(1, support), tail], dim=1))


class Divergence(Protocol):
    """A distance of p from q that is zero where they agree."""

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[Tensor, Tensor]:
        """The divergence (n,) nats and its gradient ∂/∂z (n, V)."""
        ...


def reverse_kl(student: Distribution, teacher: Distribution) -> tuple[Tensor, Tensor]:
    """KL(p‖q) = Σ p (log p − log q); ∂/∂z = p (log p − log q − KL). Makes p avoid what q finds unlikely."""
    difference = student.logprobs - teacher.logprobs
    value = vecdot(student.probs, difference)
    return value, difference.sub_(value[:, None]).mul_(student.probs)


def forward_kl(student: Distribution, teacher: Distribution) -> tuple[Tensor, Tensor]:
    """KL(q‖p) = Σ q (log q − log p); ∂/∂z = p − q. Makes p cover all that q finds likely."""
    return vecdot(teacher.probs, teacher.logprobs - student.logprobs), student.probs - teacher.probs


@dataclass(frozen=True)
class JensenShannon:
    """β KL(q‖m) + (1 − β) KL(p‖m) with m = β q + (1 − β) p (generalised: GKD, arXiv 2306.13649, §2).

    Bounded, unlike the KLs. Towards β = 0 it becomes β · KL(q‖p), towards β = 1 it becomes
    (1 − β) · KL(p‖q). beta: 0 < β < 1.
    """

    beta: float

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[Tensor, Tensor]:
        """∂/∂z = p (g − Σ p g) with g = (1 − β)(log p − log m): all else in ∂/∂p is constant."""
        beta = self.beta
        mixture = torch.logaddexp(teacher.logprobs + math.log(beta), student.logprobs + math.log1p(-beta))  # log m
        from_teacher = beta * vecdot(teacher.probs, teacher.logprobs - mixture)
        slope = (student.logprobs - mixture).mul_(1 - beta)
        from_student = vecdot(student.probs, slope)
        return from_teacher + from_student, slope.sub_(from_student[:, None]).mul_(student.probs)


def on_support(
    divergence: Divergence, student: Distribution, support: Tensor, teacher_outcomes: Distribution
) -> tuple[Tensor, Tensor]:
    """A divergence over k tokens and a tail: its value (n,) nats and its gradient on all logits (n, V).

    student: (n, V). support: (n, k). teacher_outcomes: (n, k + 1), as ``with_tail`` gives them. The tail's
    gradient falls on its tokens by their share of it, for ∂ log Σ_tail p / ∂ log p_v = p_v / Σ_tail p.
    """
    outcomes = student.with_tail(support)
    value, grad = divergence(outcomes, teacher_outcomes)
    whole = (student.logprobs - outcomes.logprobs[:, -1:]).exp_().mul_(grad[:, -1:])
    return value, whole.scatter_(1, support, grad[:, :-1])


def top_overlap(student: Distribution, ids: Tensor) -> Tensor:
    """The share of the teacher's top tokens ``ids``, (n, k), that are among the student's k likeliest: (n,)."""
    least = student.logprobs.topk(ids.shape[1]).values[:, -1:]
    return (student.logprobs.gather(1, ids) >= least).to(student.logprobs.dtype).mean(1)
