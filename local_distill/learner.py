"""Scored rollouts → a better student."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from local_distill.distributed import sum_over_processes
from local_distill.errors import UserError
from local_distill.objectives import ImportanceSampling, Objective, policy_gradient, reverse_kl_advantages
from local_distill.types import ScoredBatch
from local_distill.updates import Updates

MAX_SKIPPED = 5
"""Updates skipped in a row before the run stops: fp16's loss scale may need a few to settle."""


class DivergedError(UserError):
    """Several updates in a row were not finite."""


@dataclass(frozen=True)
class LossSettings:
    """What is minimised; see ``--loss``, ``--kl_coef``, ``--kl_discount``.

    objective: the sampled-token loss that the advantages are put into; None for the exact reverse KL.
    """

    objective: Objective | None
    kl_coef: float
    kl_discount: float
    ratio_cap: float


class Learner:
    """Updates the student; every number it reports is over all processes.

    learning_rate: the rate of a 0-based step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        updates: Updates,
        loss: LossSettings,
        learning_rate: Callable[[int], float],
        seed: int,
    ) -> None:
        self._accelerator = accelerator
        self._updates = updates
        self._loss = loss
        self._learning_rate = learning_rate
        self._seed = seed
        self._skipped_in_a_row = 0

    def update(self, substeps: Sequence[Sequence[ScoredBatch]], step: int) -> dict[str, float]:
        """One optimizer update for each substep, each from its own micro-batches. Returns the step's metrics.

        Raises DivergedError when MAX_SKIPPED updates in a row were skipped because they were not finite.
        """
        # Dropout in an adapter is the only chance in here; seeded by the step, a resumed run repeats it.
        torch.manual_seed(((self._seed * 1_000_003 + step) * 4096 + self._accelerator.process_index) % 2**63)
        rate = self._learning_rate(step)
        behaviours = self._behaviours(substeps)
        totals, skipped, grad_norm = torch.zeros(3, dtype=torch.float64), 0, 0.0
        self._updates.student.train()
        for index, batches in enumerate(substeps):
            sums = self._backward_all(batches, self._objective_of(index), behaviours[index])
            result = self._updates.apply(rate, loss_is_finite=math.isfinite(sums[1]))
            grad_norm = result.grad_norm
            skipped += not result.applied
            self._count_skipped(result.applied)
            totals += sums
        reverse_kl, loss, tokens = totals.tolist()
        return {
            "reverse_kl": reverse_kl / tokens if tokens else math.nan,
            "loss": loss / tokens if tokens else math.nan,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped": float(skipped),
        }

    def _backward_all(
        self, batches: Sequence[ScoredBatch], objective: Objective | None, behaviours: Sequence[Tensor]
    ) -> Tensor:
        """Forward and backward of one update's micro-batches.

        The loss is divided once, by the completion tokens of the whole update over all processes; then
        it does not matter how they were cut into micro-batches. Returns the sums over all processes of
        (delta, loss, tokens), float64 on the CPU.
        """
        accelerator = self._accelerator
        own_tokens = sum(batch.tokens.num_tokens for batch in batches)
        tokens = float(sum_over_processes(accelerator, torch.tensor([float(own_tokens)]))[0])
        # Gradients are averaged over the processes, so each gives its part of the sum times their number.
        scale = accelerator.num_processes / max(tokens, 1.0)
        sums = torch.zeros(2, device=accelerator.device)
        for i, (batch, behaviour) in enumerate(zip(batches, behaviours, strict=True)):
            last = i == len(batches) - 1
            with self._updates.accumulating(last):
                delta, loss = self._delta_and_loss(batch, objective, behaviour)
                self._updates.backward(loss * scale, last)
            sums += torch.stack([delta.sum(), loss.detach()])  # stays on the device: no wait for each micro-batch
        delta_sum, loss_sum = sum_over_processes(accelerator, sums).tolist()
        return torch.tensor([delta_sum, loss_sum, tokens], dtype=torch.float64)

    def _delta_and_loss(
        self, batch: ScoredBatch, objective: Objective | None, behaviour: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The divergence at each completion token, (N,) nats detached, and the micro-batch's summed loss."""
        if objective is None:
            divergence = self._updates.student(batch.tokens, batch.states)
            return divergence.detach(), self._loss.kl_coef * divergence.sum()
        logprobs = self._updates.student(batch.tokens)  # (N,) nats
        advantages = reverse_kl_advantages(
            logprobs, batch.teacher_logprobs, batch.tokens.lengths, self._loss.kl_coef, self._loss.kl_discount
        )
        return logprobs.detach() - batch.teacher_logprobs, objective(logprobs, advantages, behaviour)

    def _objective_of(self, substep: int) -> Objective | None:
        """Plain policy gradient holds only until the policy has moved; then its samples are weighed."""
        if substep > 0 and self._loss.objective is policy_gradient:
            return ImportanceSampling(self._loss.ratio_cap)
        return self._loss.objective

    def _behaviours(self, substeps: Sequence[Sequence[ScoredBatch]]) -> list[list[Tensor]]:
        """b_t of every micro-batch: what the ratios of its loss are taken against.

        For the losses with ratios, what the tokens were drawn with. For policy gradient with substeps,
        the student before its first update: so the ratio is one until the policy moves, and the first
        substep and the later ones follow the same objective.
        """
        if self._loss.objective is not policy_gradient or len(substeps) == 1:
            return [[batch.tokens.sampler_logprobs for batch in batches] for batches in substeps]
        self._updates.student.eval()
        with torch.no_grad():
            return [[self._updates.student(batch.tokens).detach() for batch in batches] for batches in substeps]

    def _count_skipped(self, applied: bool) -> None:
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise DivergedError(
                f"{MAX_SKIPPED} updates in a row had a NaN or infinite loss or gradient; "
                "lower --learning_rate, or use --dtype fp32"
            )
