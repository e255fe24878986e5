"""A plan is shown to people as a table, and to programs as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from local_distill.models.footprint import billions
from local_distill.plan.advice import Advice
from local_distill.plan.fitting import Plan
from local_distill.plan.machine import GIB

BAR = 28
"""Characters of a bar that stands for all of the memory."""


def show(plan: Plan, advice: Advice | None, console: Console) -> None:
    """Print whether the run fits, the advice where it does not, and the plan."""
    console.print(Text(verdict(plan), style="bold red" if plan.over else "bold green"))
    for line in (*([advice.in_words()] if advice else []), *facts(plan)):
        console.print(Text(line))
    console.print(_parts(plan))
    console.print(_bars(plan))
    for line in bounds_in_words(plan):
        console.print(Text(line))


def facts(plan: Plan) -> list[str]:
    """Say what is planned, in a few lines."""
    run, student, teacher = plan.run, plan.memory.student, plan.memory.teacher
    trained = f", {billions(student.trained)} of an adapter trained" if student.adapter else ", all trained"
    sharded = f" (ZeRO-{run.zero_stage})" if run.zero_stage else ""
    held = f"{billions(teacher.shape.parameters)}, {teacher.how}" if teacher else run.teacher_memory.instead
    return [
        f"student {billions(student.shape.parameters)}{trained}{sharded}; teacher {held}; "
        f"products in {str(run.dtype).removeprefix('torch.')}",
        f"{run.machine.words}; {run.machine.processes} process{'es' * (run.machine.processes > 1)}, each with "
        f"{run.rollouts} rollouts a step of at most {run.lengths.prompt} + {run.lengths.completion} tokens",
        f"below: {plan.rollouts} rollouts sampled at a time, micro-batches of {plan.rows} "
        f"rollout{'s' * (plan.rows > 1)} ({plan.rows * run.lengths.whole} tokens)",
    ]


def _parts(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GiB of each process")
    for phase in plan.phases:
        table.add_column(phase.name, justify="right")
    for name in dict.fromkeys(part.name for phase in plan.phases for part in phase.parts):
        guessed = any(part.estimated for phase in plan.phases for part in phase.parts if part.name == name)
        cells = (f"{size / GIB:.2f}" if (size := phase.of(name)) else "" for phase in plan.phases)
        table.add_row(f"{'~ ' if guessed else ''}{name}", *cells)
    table.add_row(Text("all", style="bold"), *(Text(f"{phase.bytes / GIB:.2f}", style="bold") for phase in plan.phases))
    return table


def _bars(plan: Plan) -> Table:
    table, there = Table.grid(padding=(0, 1)), plan.available
    for phase in plan.phases:
        over = phase in plan.over
        style = "red" if over else "green"
        bar = ProgressBar(there, min(phase.bytes, there), BAR, complete_style=style, finished_style=style)
        words = f"{phase.bytes / GIB:.1f} of {there / GIB:.1f} GiB{', too much' if over else ''}"
        table.add_row(phase.name, bar, words)
    return table


def verdict(plan: Plan) -> str:
    """Say in one line whether the run fits, and how full it gets."""
    fullest, there = plan.fullest, f"{plan.available / GIB:.1f} GiB"
    if plan.over:
        return f"does not fit: {fullest.name} needs {fullest.bytes / GIB:.1f} of {there}"
    return f"fits: fullest phase {fullest.bytes / GIB:.1f} of {there}, while {fullest.name}"


def bounds_in_words(plan: Plan) -> list[str]:
    """Say how much at a time fits, and what the plan does not know."""
    lines = []
    if plan.most_rows:
        lines.append(
            f"largest micro-batch that fits: {plan.most_rows * plan.run.lengths.whole} tokens "
            f"({plan.most_rows} of the longest rollouts)"
        )
    if plan.most_rollouts and plan.run.sampler_memory.own_loop:
        lines.append(f"largest sampling batch that fits: {plan.most_rollouts} rollouts")
    if plan.run.machine.glibc:
        lines.append("~ allocator is what glibc's heap loses; tcmalloc's loses next to nothing (docs/plan.md)")
    if plan.memory.not_counted:
        lines.append(f"activations and keys and values are not in it: {plan.memory.not_counted}")
    return lines


def as_record(plan: Plan, advice: Advice | None) -> dict[str, Any]:
    """Return the plan for programs; all sizes in bytes."""
    run, student, teacher = plan.run, plan.memory.student, plan.memory.teacher
    return {
        "device": run.machine.device,
        "processes": run.machine.processes,
        "memory": plan.available,
        "parameters": {
            "student": student.shape.parameters,
            "trained": student.trained,
            "teacher": teacher.shape.parameters if teacher else 0,
        },
        "sampling_batch": plan.rollouts,
        "microbatch_tokens": plan.rows * run.lengths.whole,
        "phases": {phase.name: {part.name: part.bytes for part in phase.parts} for phase in plan.phases},
        "estimated": sorted({part.name for phase in plan.phases for part in phase.parts if part.estimated}),
        "totals": {phase.name: phase.bytes for phase in plan.phases},
        "fits": plan.fits,
        "largest_microbatch_tokens": plan.most_rows * run.lengths.whole,
        "largest_sampling_batch": plan.most_rollouts,
        "not_counted": plan.memory.not_counted or None,
        "change": str(advice.change) if advice and advice.change else None,
        "largest_teacher": advice.teacher if advice else None,
    }
