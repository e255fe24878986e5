"""The smallest change that makes a run fit is found by trying what docs/out_of_memory.md lists, in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from accelerate import Accelerator

from local_distill.batch import TeacherView
from local_distill.errors import UserError
from local_distill.inputs import Inputs, loss_of
from local_distill.models.footprint import billions
from local_distill.plan.fitting import Plan, as_set, fits_at_all, make_plan
from local_distill.plan.machine import GIB
from local_distill.plan.memory import TEACHER, Memory
from local_distill.plan.planned_run import PlannedRun, run_that_starts

TOP_K = 64
"""A sharded teacher comes with this --top_k, for it cannot hand over its whole distribution."""
LIKELY = 0.5
"""A run whose weights, gradients and moments take less of the free memory is not looked at any closer."""


def check_memory(inputs: Inputs, accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """Raise UserError where a run cannot fit the memory that is free now, or only ``say`` so where it is forced.

    Nothing that is estimated counts, and of each rollout no more than is certain: its prompt and one token.
    """
    if accelerator.device.type not in ("cuda", "cpu"):
        return
    memory = Memory(run_that_starts(inputs, accelerator))
    machine = memory.run.machine
    if max(memory.loading().certain_bytes, memory.standing().certain_bytes) < LIKELY * machine.memory:
        return
    fullest = max(memory.phases(1, 1), key=lambda phase: phase.certain_bytes)
    if fullest.certain_bytes <= machine.memory:
        return
    needs = (
        f"--force: {fullest.name} needs at least {fullest.certain_bytes / GIB:.1f} GiB with one rollout at a time, "
        f"{machine.words}"
    )
    if inputs.config.force:
        say(f"{needs}; this run will probably run out of memory")
        return
    longest = replace(memory.run.lengths, completion=inputs.config.max_new_tokens)
    advice = advise(make_plan(Memory(replace(memory.run, lengths=longest), memory.rehearsed)))
    raise UserError(
        f"{needs}; {advice.in_words()}; local-distill plan has the details, and --force goes on all the same"
    )


@dataclass(frozen=True)
class Change:
    """A change sets other settings. flags: how they are written, a file of accelerate's included."""

    flags: tuple[str, ...]
    run: PlannedRun

    def __str__(self) -> str:
        return " ".join(self.flags)

    def and_set(self, flags: str, **settings: object) -> Change:
        """Return the change with these settings as well."""
        return Change((*self.flags, flags), self.run.changed(**settings))


@dataclass(frozen=True)
class Advice:
    """An advice is what to do where a run does not fit.

    change: what makes it fit, None where nothing tried does. plan: with it. teacher: parameters of the largest teacher
    that would fit instead, in the precision of this one; None where that is not the way out.
    """

    change: Change | None
    plan: Plan | None
    teacher: int | None

    def in_words(self) -> str:
        """Say what to change."""
        if self.change is not None and self.plan is not None:
            plan = self.plan
            return (
                f"the smallest change that fits: {self.change} (fullest phase {plan.fullest.bytes / GIB:.1f} GiB; "
                f"at most {plan.most_rows * plan.run.lengths.whole} tokens in a micro-batch, {plan.most_rollouts} "
                "rollouts sampled at a time)"
            )
        smaller = f", but a teacher of at most {billions(self.teacher)} would" if self.teacher else ""
        return f"no change of settings makes it fit, nor all of them together{smaller}"


def advise(plan: Plan) -> Advice:
    """Look for what makes a run fit: nothing but how much at a time, each remedy alone, the first two together, the
    first three, and so on."""
    nothing = together = Change((), plan.run)
    alone, joined = [], []
    for remedy in REMEDIES:
        if changed := remedy(nothing):
            alone.append(changed)
        if changed := remedy(together):
            together = changed
            joined.append(changed)
    for change in (nothing, *alone, *joined[1:]):
        memory = Memory(change.run, plan.memory.rehearsed)
        if fits_at_all(memory):
            return Advice(*little_enough_at_a_time(change, memory), None)
    return Advice(None, None, largest_teacher(plan))


def little_enough_at_a_time(change: Change, memory: Memory) -> tuple[Change, Plan]:
    """Add smaller micro-batches and fewer rollouts at a time to a change where what is set does not fit."""
    plan = make_plan(memory)
    rows, rollouts = as_set(plan.run)
    settings = {}
    looks_itself = plan.run.machine.device == "cuda"
    if plan.most_rows < rows and not (looks_itself and plan.run.config.microbatch_tokens is None):
        settings["microbatch_tokens"] = plan.most_rows * plan.run.lengths.whole
    if plan.most_rollouts < rollouts and not looks_itself:
        settings["sampling_batch_size"] = plan.most_rollouts
    if not settings:
        return change, plan
    change = change.and_set(" ".join(f"--{name} {value}" for name, value in settings.items()), **settings)
    return change, make_plan(Memory(change.run, memory.rehearsed))


def _checkpointing(change: Change) -> Change | None:
    if change.run.config.gradient_checkpointing:
        return None
    return change.and_set("--gradient_checkpointing", gradient_checkpointing=True)


def _lora(change: Change) -> Change | None:
    return None if change.run.config.use_lora else change.and_set("--use_lora", use_lora=True, learning_rate=None)


def _shard_teacher(change: Change) -> Change | None:
    run = change.run
    if run.machine.processes == 1 or not _is_held_whole(run):
        return None
    settings = {"teacher_ds_zero3": True, "teacher_backend": "auto"}
    settings |= {"teacher_offload": "none", "teacher_quantization": "none"}
    if run.config.loss == "auto" or loss_of(run.config).needs < TeacherView.whole_distribution:
        return change.and_set("--teacher_ds_zero3", **settings)
    return change.and_set(f"--teacher_ds_zero3 --top_k {TOP_K}", **settings, top_k=TOP_K, top_k_support="teacher")


def _is_held_whole(run: PlannedRun) -> bool:
    return run.teacher is not None and not run.teacher_memory.shared


def _hold_teacher(flags: str, settings: dict[str, str], change: Change) -> Change | None:
    """Hold the teacher in another way, where one GPU holds it whole."""
    run, config = change.run, change.run.config
    if run.machine.device != "cuda" or run.machine.processes > 1 or not _is_held_whole(run):
        return None
    if all(getattr(config, name) == value for name, value in settings.items()):
        return None
    kept = tuple(flag for flag in change.flags if not flag.startswith("--teacher_"))
    return replace(change, flags=kept).and_set(flags, **settings)


def _shard_student(change: Change) -> Change | None:
    run = change.run
    if run.zero_stage or run.dtype.itemsize == 4 or run.machine.device != "cuda" or run.machine.processes == 1:
        return None
    return Change((*change.flags, "accelerate_config_zero2.yaml"), replace(run, zero_stage=2))


_PACKED = {"teacher_quantization": "4bit", "teacher_offload": "none"}
_OFFLOADED = {"teacher_offload": "cpu", "teacher_quantization": "none"}
REMEDIES: tuple[Callable[[Change], Change | None], ...] = (
    _checkpointing,
    _lora,
    _shard_teacher,
    partial(_hold_teacher, "--teacher_quantization 4bit", _PACKED),
    partial(_hold_teacher, "--teacher_offload cpu", _OFFLOADED),
    _shard_student,
)


def largest_teacher(plan: Plan) -> int | None:
    """Return the parameters that the fullest phase leaves room for, everything else as it is."""
    held = plan.memory.teacher
    if held is None:
        return None
    room = plan.available - max(phase.bytes - phase.of(TEACHER) for phase in plan.memory.phases(1, 1))
    return int(room / held.standing * held.shape.parameters) if 0 < room < held.standing else None
