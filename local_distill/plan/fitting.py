"""A plan finds out whether a run fits its machine, and how much of it at a time does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator

from local_distill.inputs import Inputs
from local_distill.models.scorer import TokenScorer
from local_distill.plan.machine import GIB
from local_distill.plan.memory import Memory, Phase
from local_distill.plan.planned_run import PlannedRun, run_that_starts
from local_distill.process.distributed import reduce_max
from local_distill.training.device_memory import (
    ENOUGH_TOKENS,
    ENOUGH_TOKENS_ELSEWHERE,
    LESS_MEMORY,
    Kept,
    activation_bytes,
)
from local_distill.training.optimizer import ToCome

SHARE_OF_FREE = 0.95
"""Of the memory that is free when a run has everything in its place: the rest is for scratch of kernels and what else
no plan sees."""


@dataclass(frozen=True)
class Plan:
    """A plan says what a run on its machine holds, and how much of it at a time would fit.

    phases: with ``rollouts`` sampled at a time and ``rows`` of them in a micro-batch, as the run would begin.
    most_rollouts, most_rows: the most that fit, 0 where not even one does; within what the run can use.
    """

    memory: Memory
    phases: tuple[Phase, ...]
    rollouts: int
    rows: int
    most_rollouts: int
    most_rows: int

    @property
    def run(self) -> PlannedRun:
        """Return the run that is planned."""
        return self.memory.run

    @property
    def available(self) -> float:
        """Return the bytes that one process has."""
        return self.run.machine.memory

    @property
    def fits(self) -> bool:
        """Tell whether the run fits as it would begin."""
        return not self.over

    @property
    def over(self) -> tuple[Phase, ...]:
        """Return the phases that want more than there is."""
        return tuple(phase for phase in self.phases if phase.bytes > self.available)

    @property
    def fullest(self) -> Phase:
        """Return the phase that wants most."""
        return max(self.phases, key=lambda phase: phase.bytes)


def make_plan(memory: Memory) -> Plan:
    """Look for the most rollouts at a time that fit, and count the phases as the run would begin."""
    run, available = memory.run, memory.run.machine.memory

    def fits(phase: Phase) -> bool:
        return phase.bytes <= available

    room = fits(memory.loading()) and fits(memory.standing())  # else there is nothing to look for
    bound_rows, bound_rollouts = bounds(run)
    rows = largest(lambda n: fits(memory.training(n)) and fits(memory.scoring(n)), bound_rows) if room else 0
    rollouts = largest(lambda n: fits(memory.sampling(n)), bound_rollouts) if room else 0
    set_rows, set_rollouts = as_set(run)
    if run.machine.device == "cuda":  # where the run itself looks for what fits
        set_rollouts = min(set_rollouts, rollouts or 1)
        if run.config.microbatch_tokens is None:
            set_rows = min(set_rows, rows or 1)
    return Plan(memory, memory.phases(set_rollouts, set_rows), set_rollouts, set_rows, rollouts, rows)


def fits_at_all(memory: Memory) -> bool:
    """Tell whether a run fits with one rollout at a time."""
    with_one = (partial(phase, 1) for phase in (memory.training, memory.scoring, memory.sampling))
    phases: tuple[Callable[[], Phase], ...] = (memory.loading, memory.standing, *with_one)
    return all(phase().bytes <= memory.run.machine.memory for phase in phases)


def bounds(run: PlannedRun) -> tuple[int, int]:
    """Return (rollouts in a micro-batch, rollouts sampled at a time) of which more are of no use."""
    return _rows(run, max(_enough(run), run.config.microbatch_tokens or 0)), run.rollouts


def as_set(run: PlannedRun) -> tuple[int, int]:
    """Return (rollouts in a micro-batch, rollouts sampled at a time) as the settings ask for them."""
    return _rows(run, run.config.microbatch_tokens or _enough(run)), min(run.config.sampling_batch_size, run.rollouts)


def _enough(run: PlannedRun) -> int:
    return ENOUGH_TOKENS.get(run.machine.device, ENOUGH_TOKENS_ELSEWHERE)


def _rows(run: PlannedRun, tokens: int) -> int:
    """Return the rollouts of a micro-batch of so many tokens, no more than --grad_accum lets into one."""
    of_an_update = -(-run.rollouts // run.config.num_substeps)
    return max(1, min(-(-of_an_update // run.config.grad_accum), tokens // run.lengths.whole))


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to ``most`` that fits, where all smaller ones do as well; 0 where none does."""
    if not fits(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def micro_batch_tokens(
    inputs: Inputs, accelerator: Accelerator, scorer: TokenScorer, to_come: ToCome, say: Callable[[str], None]
) -> int:
    """Return the most tokens of a micro-batch where nobody said, the same on every process; collective on a GPU.

    scorer: the student, with all that else lives on the device loaded. to_come: what its updates will still allocate.
    Only on CUDA is the memory looked at; elsewhere what fills the device is small enough. say: is told where not even
    one of the longest rollouts fits.
    """
    if accelerator.device.type != "cuda":
        return ENOUGH_TOKENS_ELSEWHERE
    torch.cuda.empty_cache()
    memory = Memory(run_that_starts(inputs, accelerator, inputs.config.max_new_tokens))
    free, longest, enough = SHARE_OF_FREE * memory.run.machine.memory, memory.run.lengths.whole, ENOUGH_TOKENS["cuda"]
    memory.training(1)  # finds out whether it can be counted
    tried = activation_bytes(scorer) if memory.not_counted else Kept(0.0, 0.0)

    def needed(rows: int) -> float:
        """Return what such a micro-batch, all scores of a step and the first update take besides what is there."""
        kept = tried.fixed + rows * longest * tried.per_token
        training = to_come.gradients + to_come.moments + kept + memory.training(rows).passing_bytes
        return max(training, to_come.moments + memory.scoring(rows).passing_bytes)

    rows = -reduce_max(accelerator, -largest(lambda n: needed(n) <= free, max(1, enough // longest)))
    if rows == 0:
        say(
            f"one rollout goes through the student at a time, and the longest, of {longest} tokens, may not fit: it "
            f"takes {needed(1) / GIB:.1f} GiB besides what is there, {free / GIB:.1f} GiB are free; {LESS_MEMORY}"
        )
        return 1
    return enough if (rows + 1) * longest > enough else rows * longest
