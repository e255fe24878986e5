"""Scored rollouts → a better student."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from local_distill.batch import ScoredBatch
from local_distill.errors import RunError
from local_distill.losses.loss import Loss, summarise
from local_distill.process.distributed import sum_over_processes
from local_distill.process.seeding import seed_dropout
from local_distill.training.device_memory import SmallerMicroBatches, is_out_of_memory
from local_distill.training.metrics import StepSums, merge, per_token
from local_distill.training.optimizer import Updates

MAX_SKIPPED = 5
"""Updates skipped in a row before the run stops; those by which fp16's loss scale settles are not counted."""


class DivergedError(RunError):
    """Several updates in a row were not finite."""


class Learner:
    """The student is updated here; every number that is reported is over all processes.

    learning_rate: the rate of a 0-based step. smaller: cuts micro-batches that did not fit. epochs: how often a
    step's rollouts are gone through.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        updates: Updates,
        loss: Loss,
        learning_rate: Callable[[int], float],
        seed: int,
        smaller: SmallerMicroBatches,
        epochs: int = 1,
    ) -> None:
        self._accelerator = accelerator
        self._updates = updates
        self._loss = loss
        self._learning_rate = learning_rate
        self._seed = seed
        self._smaller = smaller
        self._epochs = epochs
        self._skipped_in_a_row = 0

    def update(self, substeps: Sequence[Sequence[ScoredBatch]], step: int) -> dict[str, float]:
        """Make one optimizer update for each substep, from its own micro-batches, in each epoch.

        Returns the step's metrics: those of the first epoch, whose rollouts are the student's own, but for the ratios,
        which are of the last. Raises DivergedError when MAX_SKIPPED updates in a row were skipped because they were not
        finite.
        """
        # Dropout in an adapter is the only chance in here; seeded by the step, a resumed run repeats it.
        seed_dropout(self._seed, step, self._accelerator.process_index)
        rate = self._learning_rate(step)
        substeps = self._with_old_logprobs(substeps)
        epochs: list[dict[str, float]] = [{} for _ in range(self._epochs)]
        skipped, grad_norm = 0, 0.0
        self._updates.student.train()
        for number in range(self._epochs * len(substeps)):
            epoch, index = divmod(number, len(substeps))
            sums = self._backward_all(substeps[index], number)
            result = self._updates.apply(rate, loss_is_finite=math.isfinite(sums["loss"]))
            grad_norm = result.grad_norm
            skipped += not result.applied
            if not result.settling:
                self._count_skipped(result.applied)
            merge(epochs[epoch], sums)
        ratios = {name: total for name, total in epochs[-1].items() if name.startswith("ratio")}
        totals = epochs[0] | ratios
        tokens = totals.pop("tokens")
        return summarise(per_token(totals, tokens)) | {
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped": float(skipped),
        }

    def _backward_all(self, batches: Sequence[ScoredBatch], substep: int) -> dict[str, float]:
        """Go forward and backward over one update's micro-batches, smaller ones when these do not fit the memory."""
        while True:
            try:
                return self._try_backward_all(batches, substep)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Only out of here is the traceback gone, which keeps the activations alive.
            batches = self._smaller.cut(batches, self._updates.can_start_over)
            self._updates.start_over()

    def _try_backward_all(self, batches: Sequence[ScoredBatch], substep: int) -> dict[str, float]:
        """Go forward and backward over one update's micro-batches.

        The loss is divided once, by the completion tokens of the whole update over all processes; then
        it does not matter how they were cut into micro-batches. Returns the sums over all processes of
        the loss, of its stats and of the tokens.
        """
        accelerator = self._accelerator
        own_tokens = sum(batch.tokens.num_tokens for batch in batches)
        tokens = float(sum_over_processes(accelerator, torch.tensor([float(own_tokens)]))[0])
        # Gradients are averaged over the processes, so each gives its part of the sum times their number.
        scale = accelerator.num_processes / max(tokens, 1.0)
        sums = StepSums()  # stays on the device: no wait for each micro-batch
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with self._updates.accumulating(last):
                loss, stats = self._updates.student(batch.tokens, self._loss.reading(batch, substep))
                self._updates.backward(loss * scale, last)
            sums.add({"loss": loss.detach(), **stats})
        return sums.over_processes(accelerator) | {"tokens": tokens}

    def _with_old_logprobs(self, substeps: Sequence[Sequence[ScoredBatch]]) -> Sequence[Sequence[ScoredBatch]]:
        """Return the batches, with what the ratios of their loss are taken against.

        What the tokens were drawn with; or, for a loss that uses the old log-probs and moves more than once, the
        student before its first update: so the ratio is one until the policy moves, and the first
        substep and the later ones follow the same objective.
        """
        if not self._loss.uses_old_logprobs or self._epochs * len(substeps) == 1:
            return substeps
        student = self._updates.student
        student.eval()
        with torch.no_grad():
            return [
                [replace(batch, old_logprobs=student(batch.tokens).logprobs) for batch in each] for each in substeps
            ]

    def _count_skipped(self, applied: bool) -> None:
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise DivergedError(
                f"{MAX_SKIPPED} updates in a row had a NaN or infinite loss or gradient; "
                "lower --learning_rate, or use --dtype fp32"
            )
