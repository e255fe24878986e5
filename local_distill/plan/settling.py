"""The most comfortable way to run that fits a machine: ways are planned in order, the first that fits is taken.

First the student: all its weights, then its activations recomputed, its optimizer sharded, an adapter. Then the
teacher: whole, then sharded or packed, then offloaded. Then shorter completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from local_distill.config.train_config import TrainConfig
from local_distill.plan.advice import Change, largest_teacher, little_enough_at_a_time
from local_distill.plan.fitting import Plan, bounds, make_plan
from local_distill.plan.machine import Machine
from local_distill.plan.memory import Memory
from local_distill.plan.planned_run import open_run
from local_distill.plan.rehearsal import Rehearsed

COMFORTABLE, ENOUGH = (4, 16), (1, 4)
"""Rollouts in a micro-batch, and sampled at a time, for which a run has room that goes well; that goes at all."""
SHORTEST = 64
"""Completions are not made shorter than this many tokens."""


@dataclass(frozen=True)
class Way:
    """A way to run is some settings. zero_stage: of DeepSpeed's ZeRO for the student. words: for people."""

    words: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    zero_stage: int = 0

    def and_also(self, other: Way) -> Way:
        """Return both ways together."""
        words = ", ".join(filter(None, (self.words, other.words)))
        return Way(words, {**self.settings, **other.settings}, max(self.zero_stage, other.zero_stage))


@dataclass(frozen=True)
class Settled:
    """A run is settled with all its settings. plan: with them. left: in words, the ways before it that do not fit."""

    way: Way
    settings: Mapping[str, Any]
    plan: Plan
    left: tuple[str, ...]


@dataclass(frozen=True)
class NothingFits:
    """No way fits. plan: of the most frugal one. teacher: parameters of the largest teacher that would fit with it,
    None where no teacher would."""

    plan: Plan
    teacher: int | None


_RECOMPUTED = {"gradient_checkpointing": True}
_STUDENT = (
    Way("all weights"),
    Way("all weights with activations recomputed", _RECOMPUTED),
    Way("all weights with a sharded optimizer", {**_RECOMPUTED, "dtype": "bf16"}, zero_stage=2),
    Way("an adapter", {"use_lora": True}),
    Way("an adapter with activations recomputed", {"use_lora": True, **_RECOMPUTED}),
)
_WHOLE = Way("")
_ON_ONE_GPU = (
    Way("the teacher in 4 bits", {"teacher_quantization": "4bit"}),
    Way("the teacher in the machine's memory", {"teacher_offload": "cpu"}),
)
_ON_SEVERAL_GPUS = (Way("the teacher sharded over the GPUs", {"teacher_ds_zero3": True}),)


def settle(
    settings: Mapping[str, Any], machine: Machine, held: bool, tell: Callable[[str], None]
) -> Settled | NothingFits:
    """Return the settings with what makes the run fit ``machine``.

    settings: of a run, as they would be with room enough; one that uses LoRA keeps to it. held: the teacher is in these
    processes, and not behind a server or the student's own base. tell: is told what is tried now. Raises UserError for
    settings that are wrong.
    """
    wanted = int(settings["max_new_tokens"])
    lengths = [wanted]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    left: list[str] = []
    rehearsed: Rehearsed = {}
    for length in lengths:
        for teacher in _teachers(machine, held):
            for student in _students(machine, bool(settings.get("use_lora"))):
                way = student.and_also(teacher)
                tell(way.words if length == wanted else f"{way.words}, completions of {length} tokens")
                tried = {**settings, **way.settings, "max_new_tokens": length}
                memory = Memory(open_run(TrainConfig(**tried), machine, way.zero_stage), rehearsed)
                frugal = student is _STUDENT[-1]  # rather little at a time than a teacher that is not whole
                if _fits(memory, *COMFORTABLE) or (frugal and _fits(memory, *ENOUGH)):
                    return _settled(way, tried, memory, left)
                left += [way.words] if length == wanted else []
    plan = make_plan(memory)
    return NothingFits(plan, largest_teacher(plan))


def _teachers(machine: Machine, held: bool) -> tuple[Way, ...]:
    if machine.device != "cuda" or not held:
        return (_WHOLE,)
    return (_WHOLE, *(_ON_SEVERAL_GPUS if machine.processes > 1 else _ON_ONE_GPU))


def _students(machine: Machine, adapter: bool) -> Iterator[Way]:
    for way in _STUDENT:
        if (machine.processes > 1 or not way.zero_stage) and (way.settings.get("use_lora") or not adapter):
            yield way


def _fits(memory: Memory, rows: int, rollouts: int) -> bool:
    """Tell whether so many of the longest rollouts fit at a time, no more than the run has.

    What is counted in no time is looked at first, then what is rehearsed once where more takes it twice.
    """
    there = memory.run.machine.memory
    most_rows, most_rollouts = bounds(memory.run)
    phases: tuple[Callable[[], float], ...] = (
        lambda: memory.loading().bytes,
        lambda: memory.standing().bytes,
        lambda: memory.training(min(2, rows, most_rows)).bytes,
        lambda: memory.training(min(rows, most_rows)).bytes,
        lambda: memory.scoring(min(rows, most_rows)).bytes,
        lambda: memory.sampling(min(rollouts, most_rollouts)).bytes,
    )
    return all(phase() <= there for phase in phases)


def _settled(way: Way, settings: dict[str, Any], memory: Memory, left: list[str]) -> Settled:
    """Add how much at a time fits; on a GPU the run looks for the size of its micro-batches itself."""
    change, plan = little_enough_at_a_time(Change((), memory.run), memory)
    added = {name: getattr(change.run.config, name) for name in ("microbatch_tokens", "sampling_batch_size")}
    if plan.run.sampler_memory.own_loop:
        added["sampling_batch_size"] = min(plan.rollouts, added["sampling_batch_size"])
    before = memory.run.config
    needed = min(before.sampling_batch_size, memory.run.rollouts)
    changed = {name: value for name, value in added.items() if value != getattr(before, name)}
    if changed.get("sampling_batch_size") == needed:  # no less than the run would take anyway
        del changed["sampling_batch_size"]
    return Settled(way, {**settings, **changed}, plan, tuple(left))
