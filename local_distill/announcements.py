"""What a run says about itself, to people and in its folder: what is about to happen, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

from local_distill.backends import teacher_of
from local_distill.batch import TeacherView
from local_distill.config.lookup import LOSSES
from local_distill.config.train_config import TrainConfig
from local_distill.eval.eval_config import SELF
from local_distill.inputs import Inputs, learning_rates
from local_distill.models.footprint import billions
from local_distill.monitor.log import RunLog
from local_distill.monitor.silent import Fact
from local_distill.monitor.summary import show_summary, write_summary
from local_distill.plan.machine import GIB
from local_distill.plan.memory import Memory
from local_distill.plan.planned_run import run_that_starts
from local_distill.process.command_line import to_resume, to_run
from local_distill.process.launch import launch_in_words, sums_in_words
from local_distill.report.page import report_of_ended_run
from local_distill.runs.environment import write_environment
from local_distill.runs.evaluations import TrainResult
from local_distill.runs.folder import RunFolder
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE, SETTINGS_FILE, read_settings
from local_distill.runs.records import lost_records, read_evaluations, training_totals
from local_distill.runs.whole_files import write_whole


def announce(inputs: Inputs, accelerator: Accelerator, folder: RunFolder, log: RunLog) -> None:
    """Write down the settings and what the run is on, and say what is about to happen; the log is open by now.

    Raises UserError for files that cannot be read or written.
    """
    config = inputs.config
    jump = schedule_note(config, folder)  # before the settings of before are replaced
    lost: Sequence[str] = ()
    if accelerator.is_main_process:
        write_settings(config, folder.path)
        write_environment(folder.path, accelerator.num_processes, resumed=folder.checkpoint is not None)
        log.facts(facts_of_run(inputs, accelerator, folder))
        lost = lost_records(folder.path, folder.first_step) if folder.kept_here else ()
    for note in filter(None, (*folder.notes, *notes_of(inputs, accelerator))):
        log.say(note)
    for warning in filter(None, (jump, *lost, *warnings_of(config))):
        log.warn(warning)


def notes_of(inputs: Inputs, accelerator: Accelerator) -> tuple[str, ...]:
    """Return what people should know of a run before it begins; some may be empty."""
    return sums_in_words(accelerator), *inputs.notes, *inputs.prompts.notes[:-1]


def warnings_of(config: TrainConfig) -> tuple[str, ...]:
    """Return what its settings do that nobody may want; some may be empty."""
    return off_policy_note(config), unused_lora_note(config)


def facts_of_run(inputs: Inputs, accelerator: Accelerator, folder: RunFolder) -> list[Fact]:
    """Return what a run is, in rows: the models and what is made of them, on what, and where it is written down."""
    config, memory = inputs.config, Memory(run_that_starts(inputs, accelerator))
    student, teacher, device = memory.student, memory.teacher, accelerator.device
    trained = "all trained" if student.trained == student.shape.parameters else f"{billions(student.trained)} trained"
    if student.adapter:
        trained = f"frozen, with an adapter of {billions(student.trained)}"
    held = f", {billions(teacher.shape.parameters)} parameters" if teacher else ""
    warmup = f", after {config.warmup_steps} of warm-up" if config.warmup_steps else ""
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    certain, there = max(memory.loading().certain_bytes, memory.standing().certain_bytes), memory.run.machine.memory
    dealt = inputs.prompts.notes[-1]  # all that is told of them before is of some
    each = " of each process" if accelerator.num_processes > 1 else ""
    return [
        ("student", f"{config.student_model}, {billions(student.shape.parameters)} parameters, {trained}"),
        ("teacher", f"{teacher_of(config).words(config)}{held}"),
        ("loss", loss_in_words(config)),
        ("prompts", re.sub(r"^([\d,]+) prompts?", r"\1", dealt)),
        (
            "steps",
            f"{config.steps}, each of {config.batch_size} prompts × {config.group_size} rollouts of at most "
            f"{config.max_new_tokens} tokens{f'; {folder.first_step} are done' if folder.first_step else ''}",
        ),
        ("learning", f"rate {_rate(config.learning_rate or 0.0)}, {config.lr_scheduler}{warmup}"),
        ("machine", launch_in_words(accelerator, inputs.precision) + gpu),
        ("memory", f"models and optimizer take {certain / GIB:.1f} of {there / GIB:.1f} GiB free{each}"),
        ("folder", str(folder.path)),
    ]


def _rate(value: float) -> str:
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def conclude(config: TrainConfig, result: TrainResult) -> TrainResult:
    """Say how it ended: the summary, or the command to go on with. Returns the result with the evaluations in it."""
    if evaluations := read_evaluations(result.folder / COMPLETIONS_FILE):
        before = next((each for each in evaluations if each.step == 0), None)
        result = replace(result, before=before, after=evaluations[-1])
    folder, stopped_by = result.folder, result.stopped_by
    if stopped_by is not None:
        ended = f"stopped by {stopped_by.name} after step {result.steps}, which is saved in {folder}"
        print(f"{ended}; to go on, launch again:")
        print(f"  {to_resume(folder / SETTINGS_FILE)}")
        if evaluations or result.steps:  # else nothing was measured
            print(report_of_ended_run(folder))
        return result
    tokens, seconds = training_totals(folder / METRICS_FILE)
    facts: dict[str, str | int | float] = {
        "student": config.student_model,
        "teacher": teacher_of(config).words(config),
        "loss": config.loss_in_words,
        "steps": result.steps,
        "tokens": tokens,
        "seconds": seconds,
        "checkpoint": str(result.checkpoint),
    }
    if result.after and not result.before:
        print(f"{folder / COMPLETIONS_FILE}: has no evaluation before training, so there is nothing to compare with")
    show_summary(result.before, result.after, facts)
    write_summary(folder, result.before, result.after, facts)
    print(report_of_ended_run(folder))
    print("to go on with it:", *what_is_next(config, folder), sep="\n  ")
    return result


def what_is_next(config: TrainConfig, folder: Path) -> list[str]:
    """Return the lines that talk to what a run has made, measure it, and make it a model for others."""
    run = str(folder)
    teacher = {"local": config.teacher_model, "zero3": config.teacher_model, "self": SELF}.get(config.teacher_kind)
    beside = ("--teacher_model", teacher) if teacher else ()
    models = (run,) if teacher == SELF else (config.student_model, run)
    prompts = ("--prompts_file", config.prompts_file) if config.prompts_file and teacher else ("--dataset", "gsm8k")
    return [
        to_run("chat", run, *beside),
        to_run("eval", *models, *beside, *prompts, "--limit", "100"),
        to_run("export", run),
        to_run("report", run, "--open"),
    ]


def write_settings(config: TrainConfig, folder: Path) -> None:
    """Write the settings of the run as a file that ``--config`` takes."""
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "resume"}
    given["output_dir"] = str(folder)
    write_whole(folder / SETTINGS_FILE, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))


def off_policy_note(config: TrainConfig) -> str:
    """Return a word on samples that the loss takes for the student's own though they are not, or nothing."""
    return LOSSES.get(config.loss_name).note(config)


def loss_in_words(config: TrainConfig) -> str:
    """Return the loss; where --loss auto was left to choose, which form it took and why."""
    if config.loss != "auto":
        return config.loss_in_words
    return f"{_chosen(config)} (--loss auto)"


def _chosen(config: TrainConfig) -> str:
    if config.kl_discount:
        return f"policy_gradient, for --kl_discount {config.kl_discount:g} weighs the sampled tokens"
    if config.teacher_gives == TeacherView.tokens:
        return "policy_gradient, for the teacher gives the log-probs of the sampled tokens alone"
    if config.teacher_gives == TeacherView.whole_distribution:
        if config.top_k is not None:
            return f"reverse_kl over the {config.top_k} top tokens of --top_k and a tail"
        return "reverse_kl over every token, exact, for the teacher gives its whole distribution"
    return (
        f"reverse_kl over the teacher's {config.loss_top_k} likeliest tokens and a tail, for it cannot hand over its "
        "whole distribution"
    )


def unused_lora_note(config: TrainConfig) -> str:
    """Return a word on settings of an adapter that there will not be, or nothing."""
    unused = [f.name for f in fields(config) if f.name.startswith("lora_") and getattr(config, f.name) != f.default]
    if not unused or (config.use_lora and not config.init_adapter):
        return ""
    if config.init_adapter:
        return f"--{unused[0]} is not used: --init_adapter brings its own"
    return f"--{unused[0]} is not used: all weights are trained, an adapter wants --use_lora"


def schedule_note(config: TrainConfig, folder: RunFolder) -> str:
    """Return a word on a learning rate that jumps where the schedule is stretched to other steps, or nothing."""
    if folder.checkpoint is None or config.schedule_steps is not None:
        return ""
    before = read_settings(folder.checkpoint.path.resolve().parent)
    steps = before.get("schedule_steps") or before.get("steps")
    if not isinstance(steps, int):
        return ""
    earlier, now = (learning_rates(config, total)(folder.first_step) for total in (steps, config.steps))
    if earlier == now:
        return ""
    return (
        f"--lr_scheduler {config.lr_scheduler} now ends after {config.steps} steps, not {steps}: the learning rate "
        f"goes on at {now:.3g}, not at {earlier:.3g}; --schedule_steps {steps} keeps the schedule"
    )
