"""The smallest change that makes a run fit, by trying what README's "Out of memory?" lists, in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from local_distill.config.train_fields import DIVERGENCES
from local_distill.plan.fitting import Plan, as_set, fits_at_all, make_plan
from local_distill.plan.machine import GIB
from local_distill.plan.memory import Memory, Run
from local_distill.plan.shapes import billions
from local_distill.plan.weights import TEACHER

TOP_K = 64
"""--top_k that comes with a sharded teacher, which cannot hand over its whole distribution."""


@dataclass(frozen=True)
class Change:
    """Other settings. flags: how they are written, a file of accelerate's included."""

    flags: tuple[str, ...]
    run: Run

    def __str__(self) -> str:
        return " ".join(self.flags)


@dataclass(frozen=True)
class Advice:
    """change: what makes the run fit, None where nothing tried does. plan: with it. teacher: parameters of the largest
    teacher that would fit instead, in the precision of this one; None where that is not the way out."""

    change: Change | None
    plan: Plan | None
    teacher: int | None

    def in_words(self) -> str:
        """What to change."""
        if self.change is not None and self.plan is not None:
            plan = self.plan
            fullest = max(phase.bytes for phase in plan.phases) / GIB
            return (
                f"the smallest change that fits: {self.change} (fullest phase {fullest:.1f} GiB; at most "
                f"{plan.most_rows * plan.run.lengths.whole} tokens in a micro-batch, {plan.most_rollouts} rollouts "
                "sampled at a time)"
            )
        smaller = f", but a teacher of at most {billions(self.teacher)} would" if self.teacher else ""
        return f"no change of settings makes it fit, nor all of them together{smaller}"


def advise(plan: Plan) -> Advice:
    """For a run that does not fit."""
    start = Change((), plan.run)
    singles = [changed for remedy in REMEDIES if (changed := remedy(start)) is not None]
    for change in (start, *singles, *_one_after_the_other(start)):
        memory = Memory(change.run)
        if fits_at_all(memory):
            change, found = _little_enough_at_a_time(change, memory)
            return Advice(change, found, None)
    return Advice(None, None, _largest_teacher(plan))


def _one_after_the_other(change: Change) -> list[Change]:
    """The first two remedies together, then the first three, and so on."""
    found = []
    for remedy in REMEDIES:
        changed = remedy(change)
        if changed is not None:
            change = changed
            found.append(change)
    return found[1:]


def _little_enough_at_a_time(change: Change, memory: Memory) -> tuple[Change, Plan]:
    """The change, with smaller micro-batches and fewer rollouts at a time where what is set does not fit."""
    plan = make_plan(memory)
    rows, rollouts = as_set(plan.run)
    flags, settings = change.flags, {}
    looks_itself = plan.run.machine.device == "cuda"
    if plan.most_rows < rows and not (looks_itself and plan.run.config.microbatch_tokens is None):
        settings["microbatch_tokens"] = plan.most_rows * plan.run.lengths.whole
    if plan.most_rollouts < rollouts and not looks_itself:
        settings["sampling_batch_size"] = plan.most_rollouts
    if not settings:
        return change, plan
    flags = (*flags, *(f"--{name} {value}" for name, value in settings.items()))
    change = Change(flags, change.run.changed(**settings))
    return change, make_plan(Memory(change.run))


def _checkpointing(change: Change) -> Change | None:
    if change.run.config.gradient_checkpointing:
        return None
    return _with(change, "--gradient_checkpointing", change.run.changed(gradient_checkpointing=True))


def _lora(change: Change) -> Change | None:
    if change.run.config.use_lora:
        return None
    return _with(change, "--use_lora", change.run.changed(use_lora=True, learning_rate=None))


def _shard_teacher(change: Change) -> Change | None:
    run, config = change.run, change.run.config
    if run.machine.processes == 1 or config.teacher_kind != "local":
        return None
    flags, settings = ["--teacher_ds_zero3"], {"teacher_ds_zero3": True, "teacher_backend": "auto"}
    settings |= {"teacher_offload": "none", "teacher_quantization": "none"}
    if config.loss in DIVERGENCES and (config.top_k is None or config.top_k_support == "student"):
        flags.append(f"--top_k {TOP_K}")
        settings |= {"top_k": TOP_K, "top_k_support": "teacher"}
    return _with(change, " ".join(flags), run.changed(**settings))


def _pack_teacher(change: Change) -> Change | None:
    return _alone(change, "--teacher_quantization 4bit", teacher_quantization="4bit", teacher_offload="none")


def _offload_teacher(change: Change) -> Change | None:
    return _alone(change, "--teacher_offload cpu", teacher_offload="cpu", teacher_quantization="none")


def _alone(change: Change, flags: str, **settings: str) -> Change | None:
    """A teacher held in another way, where one GPU holds it whole."""
    run, config = change.run, change.run.config
    if run.machine.device != "cuda" or run.machine.processes > 1 or config.teacher_kind != "local":
        return None
    if all(getattr(config, name) == value for name, value in settings.items()):
        return None
    kept = tuple(flag for flag in change.flags if not flag.startswith("--teacher_"))
    return Change((*kept, flags), run.changed(**settings))


def _shard_student(change: Change) -> Change | None:
    run = change.run
    if run.zero_stage or run.dtype.itemsize == 4 or run.machine.device != "cuda" or run.machine.processes == 1:
        return None
    return _with(change, "accelerate_config_zero2.yaml", replace(run, zero_stage=2))


def _with(change: Change, flags: str, run: Run) -> Change:
    return Change((*change.flags, flags), run)


REMEDIES: tuple[Callable[[Change], Change | None], ...] = (
    _checkpointing, _lora, _shard_teacher, _pack_teacher, _offload_teacher, _shard_student,
)  # fmt: skip


def _largest_teacher(plan: Plan) -> int | None:
    """Parameters that the fullest phase leaves room for, everything else as it is."""
    memory = Memory(plan.run)
    weights = memory.teacher
    if weights is None:
        return None
    phases = memory.phases(1, 1)
    standing = weights.resident().bytes
    room = plan.memory - max(phase.bytes - phase.of(TEACHER) for phase in phases)
    return int(room / standing * weights.shape.parameters) if 0 < room < standing else None
