"""The same arithmetic before a run loads anything: a run that cannot fit is not begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from accelerate import Accelerator

from local_distill.errors import UserError
from local_distill.inputs import Inputs
from local_distill.plan.advice import advise
from local_distill.plan.fitting import make_plan
from local_distill.plan.machine import GIB
from local_distill.plan.memory import Memory
from local_distill.plan.opening import run_that_starts
from local_distill.plan.phases import Phase

LIKELY = 0.5
"""Of the free memory: a run whose weights, gradients and moments take less is not looked at any closer."""


def check_memory(inputs: Inputs, accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """Raise UserError where a run cannot fit the memory that is free now, or only ``say`` so where it is forced.

    Nothing that is estimated counts, and of each rollout no more than is certain: its prompt and one token.
    """
    if accelerator.device.type not in ("cuda", "cpu"):
        return
    memory = Memory(run_that_starts(inputs, accelerator))
    free = memory.run.machine.memory
    if max(memory.loading().certain_bytes, memory.standing().certain_bytes) < LIKELY * free:
        return
    phases = memory.phases(1, 1)
    fullest = max(phases, key=lambda phase: phase.certain_bytes)
    if fullest.certain_bytes <= free:
        return
    if inputs.config.force:
        say(f"--force: {_needs(fullest)}, {memory.run.machine.words}; this run will probably run out of memory")
        return
    longest = replace(memory.run.lengths, completion=inputs.config.max_new_tokens)
    advice = advise(make_plan(Memory(replace(memory.run, lengths=longest))))
    raise UserError(
        f"--force: {_needs(fullest)}, {memory.run.machine.words}; {advice.in_words()}; "
        "local-distill plan has the details, and --force goes on all the same"
    )


def _needs(phase: Phase) -> str:
    return f"{phase.name} needs at least {phase.certain_bytes / GIB:.1f} GiB with one rollout at a time"
