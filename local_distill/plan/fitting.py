"""Does a run fit, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from local_distill.plan.memory import Memory, Run
from local_distill.plan.phases import Phase
from local_distill.training.activations import ENOUGH_TOKENS, ENOUGH_TOKENS_ELSEWHERE


@dataclass(frozen=True)
class Plan:
    """A run on its machine.

    phases: with ``rollouts`` sampled at a time and ``rows`` of them in a micro-batch, as the run would begin.
    most_rollouts, most_rows: the most that fit, 0 where not even one does; within what the run can use.
    memory: bytes of one process. parameters: of both models. not_counted: why activations are not in it, or nothing.
    """

    run: Run
    phases: tuple[Phase, ...]
    rollouts: int
    rows: int
    most_rollouts: int
    most_rows: int
    not_counted: str

    @property
    def memory(self) -> float:
        """Bytes that one process has."""
        return self.run.machine.memory

    @property
    def fits(self) -> bool:
        """As it would begin."""
        return not self.over

    @property
    def over(self) -> tuple[Phase, ...]:
        """Phases that want more than there is."""
        return tuple(phase for phase in self.phases if phase.bytes > self.memory)


def make_plan(memory: Memory) -> Plan:
    """The phases of a run, and how much of it at a time fits."""
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
    phases = memory.phases(set_rollouts, set_rows)
    return Plan(run, phases, set_rollouts, set_rows, rollouts, rows, memory.not_counted)


def fits_at_all(memory: Memory) -> bool:
    """Whether it fits with one rollout at a time."""
    phases = (memory.loading, memory.standing, lambda: memory.training(1), lambda: memory.scoring(1))
    available = memory.run.machine.memory
    return all(phase().bytes <= available for phase in (*phases, lambda: memory.sampling(1)))


def bounds(run: Run) -> tuple[int, int]:
    """(rollouts in a micro-batch, rollouts sampled at a time): more than these are of no use."""
    tokens = max(_enough(run), run.config.microbatch_tokens or 0)
    return max(1, min(_of_a_micro_batch(run), tokens // run.lengths.whole)), run.rollouts


def as_set(run: Run) -> tuple[int, int]:
    """The same, as the settings ask for them."""
    tokens = run.config.microbatch_tokens or _enough(run)
    rows = max(1, min(_of_a_micro_batch(run), tokens // run.lengths.whole))
    return rows, min(run.config.sampling_batch_size, run.rollouts)


def _enough(run: Run) -> int:
    return ENOUGH_TOKENS.get(run.machine.device, ENOUGH_TOKENS_ELSEWHERE)


def _of_a_micro_batch(run: Run) -> int:
    """Rollouts of one where --grad_accum alone cuts them."""
    of_an_update = -(-run.rollouts // run.config.num_substeps)
    return -(-of_an_update // run.config.grad_accum)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, where all smaller ones do as well; 0 where none does."""
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
