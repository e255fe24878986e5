"""Advantages and losses of the sampled-token form, as pure functions over completion tokens.

All tensors are flat, (N,), rollout after rollout, completion tokens only: there is no padding and no
prompt in them to leak into a sum. Log-probabilities are in nats at temperature 1.

    s_t  student    q_t  teacher    b_t  behaviour: what the tokens were drawn with

Every loss returns the *sum* over the tokens given; the caller divides once by the number of
completion tokens of the whole optimizer update, over all micro-batches and processes.

The method: thinkingmachines.ai/blog/on-policy-distillation (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """A loss over sampled tokens."""

    def __call__(self, logprobs: Tensor, advantages: Tensor, behaviour: Tensor) -> Tensor:
        """The summed loss, a scalar, from s_t with gradient, A_t and b_t without; each (N,)."""
        ...


def reverse_kl_advantages(delta: Tensor, coef: float) -> Tensor:
    """A_t = −coef · δ_t with δ_t = s_t − q_t, or its discounted sum: (N,), no gradient.

    A token that the student likes more than the teacher does is pushed down. Not centred: for truncated
    samples a constant would make a false optimum.
    """
    return -coef * delta.detach()


def discounted(delta: Tensor, lengths: Sequence[int], discount: float) -> Tensor:
    """Σ_{u ≥ t} γ^(u−t) δ_u, to the end of the token's own rollout. delta: (N,), rollouts of ``lengths`` on end."""
    return torch.cat([_discounted_sum(part, discount) for part in torch.split(delta, list(lengths))])


def _discounted_sum(values: Tensor, discount: float) -> Tensor:
    """out_t = Σ_{u ≥ t} γ^(u−t) · values_u, for (T,).

    By doubling: after k rounds each entry holds the first 2^k terms of its sum, so log T vector
    operations do, exact for any γ in (0, 1], where a division of cumulative sums by γ^t would overflow.
    """
    total = values.clone()
    reach = 1
    while reach < len(total):
        total[:-reach] += discount**reach * total[reach:].clone()
        reach *= 2
    return total


def value_and_slope(
    objective: Objective, logprobs: Tensor, advantages: Tensor, behaviour: Tensor
) -> tuple[Tensor, Tensor]:
    """The summed loss, a scalar, and its derivative by each s_t, (N,); neither carries a graph."""
    with torch.enable_grad():
        logprobs = logprobs.detach().requires_grad_()
        loss = objective(logprobs, advantages, behaviour)
        (slope,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), slope


def policy_gradient(logprobs: Tensor, advantages: Tensor, behaviour: Tensor) -> Tensor:
    """−Σ A_t · s_t, exact when the tokens were drawn from the student as it is now; ``behaviour`` is not used."""
    del behaviour
    return -(advantages * logprobs).sum()


class ImportanceSampling:
    """−Σ min(r_t, cap) · A_t with r_t = exp(s_t − b_t), the gradient through r_t.

    For samples from another policy than today's student (temperature, top-p, an update in between,
    an engine of lower precision). A token whose ratio is over the cap gives no gradient.
    """

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def __call__(self, logprobs: Tensor, advantages: Tensor, behaviour: Tensor) -> Tensor:
        ratio = (logprobs - behaviour).exp()
        return -(ratio.clamp(max=self.cap) * advantages).sum()


class PPO:
    """−Σ min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t) with r_t = exp(s_t − b_t) (arXiv 1707.06347, eq. 7)."""

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def __call__(self, logprobs: Tensor, advantages: Tensor, behaviour: Tensor) -> Tensor:
        ratio = (logprobs - behaviour).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return -torch.minimum(ratio * advantages, clipped * advantages).sum()
