"""How many tokens go through the student at a time, where nobody said: what fills the device, or what a plan finds to
fit what is free on it once everything is in its place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from local_distill.inputs import Inputs
from local_distill.models.scorer import TokenScorer
from local_distill.plan.fitting import largest
from local_distill.plan.machine import GIB
from local_distill.plan.memory import Memory
from local_distill.plan.opening import run_that_starts
from local_distill.plan.phases import Part
from local_distill.process.distributed import most_anywhere
from local_distill.training.activations import ENOUGH_TOKENS, ENOUGH_TOKENS_ELSEWHERE, Kept, activation_bytes
from local_distill.training.optimizer import ToCome
from local_distill.training.out_of_memory import LESS_MEMORY

SHARE_OF_FREE = 0.95
"""Of the free memory: the rest is for scratch of kernels and what else no plan sees."""


def micro_batch_tokens(
    inputs: Inputs, accelerator: Accelerator, scorer: TokenScorer, to_come: ToCome, say: Callable[[str], None]
) -> int:
    """Most tokens of a micro-batch, the same on every process; collective on a GPU.

    scorer: the student, with all that else lives on the device loaded. to_come: what its updates will still allocate.
    Only on CUDA is the memory looked at; elsewhere what fills the device is small enough. say: is told where not even
    one of the longest rollouts fits.
    """
    if accelerator.device.type != "cuda":
        return ENOUGH_TOKENS_ELSEWHERE
    torch.cuda.empty_cache()
    room = _Room(Memory(run_that_starts(inputs, accelerator, inputs.config.max_new_tokens)), scorer, to_come)
    enough = ENOUGH_TOKENS["cuda"]
    longest = room.memory.run.lengths.whole
    rows = -most_anywhere(accelerator, -largest(room.fits, max(1, enough // longest)))
    if rows == 0:
        say(
            f"one rollout goes through the student at a time, and the longest, of {longest} tokens, may not fit: it "
            f"takes {room.needed(1) / GIB:.1f} GiB besides what is there, {room.free / GIB:.1f} GiB are free; "
            f"{LESS_MEMORY}"
        )
        return 1
    return enough if (rows + 1) * longest > enough else rows * longest


class _Room:
    """What is free, for micro-batches of the longest rollouts. memory: a plan on what is free now."""

    def __init__(self, memory: Memory, scorer: TokenScorer, to_come: ToCome) -> None:
        self.memory = memory
        self.free = SHARE_OF_FREE * memory.run.machine.memory
        self._to_come = to_come
        memory.training_besides(1)  # finds out whether it can be counted
        self._tried = activation_bytes(scorer) if memory.not_counted else Kept(0.0, 0.0)

    def fits(self, rows: int) -> bool:
        return self.needed(rows) <= self.free

    def needed(self, rows: int) -> float:
        """Bytes that such a micro-batch, all scores of a step and the first update take besides what is there."""
        memory, coming = self.memory, self._to_come
        kept = self._tried.fixed + rows * memory.run.lengths.whole * self._tried.per_token
        training = coming.gradients + coming.moments + kept + _bytes(memory.training_besides(rows))
        return max(training, coming.moments + _bytes(memory.scoring_besides(rows)))


def _bytes(parts: tuple[Part, ...]) -> float:
    return sum(part.bytes for part in parts)
