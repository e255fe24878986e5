"""What a run says about itself, to people and in its folder: what is about to happen, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml
from accelerate import Accelerator

from local_distill.backends import teacher_of
from local_distill.batch import TeacherView
from local_distill.config.lookup import LOSSES
from local_distill.config.train_config import TrainConfig
from local_distill.inputs import Inputs, learning_rates
from local_distill.monitor.summary import show_summary, write_summary
from local_distill.process.launch import launch_in_words, sums_in_words
from local_distill.report.page import report_of_ended_run
from local_distill.runs.environment import write_environment
from local_distill.runs.evaluations import TrainResult
from local_distill.runs.folder import RunFolder
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE, SETTINGS_FILE, read_settings
from local_distill.runs.records import lost_records, read_evaluations, training_totals
from local_distill.runs.whole_files import write_whole


def announce(inputs: Inputs, accelerator: Accelerator, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Write down the settings and what the run is on, and say what is about to happen; the log is open by now.

    Raises UserError for files that cannot be read or written.
    """
    config = inputs.config
    jump = schedule_note(config, folder)  # before the settings of before are replaced
    if accelerator.is_main_process:
        write_settings(config, folder.path)
        write_environment(folder.path, accelerator.num_processes, resumed=folder.checkpoint is not None)
    say(f"{config.student_model} learns from {teacher_of(config).words(config)}, in {folder.path}")
    say(launch_in_words(accelerator, inputs.precision))
    kept_here = folder.checkpoint is not None and folder.checkpoint.path.resolve().parent == folder.path.resolve()
    lost = lost_records(folder.path, folder.first_step) if kept_here and accelerator.is_main_process else ()
    notes = (
        *folder.notes,
        jump,
        *lost,
        sums_in_words(accelerator),
        *inputs.notes,
        auto_loss_note(config),
        off_policy_note(config),
    )
    for note in filter(None, (*notes, unused_lora_note(config), *inputs.prompts.notes)):
        say(note)


def conclude(config: TrainConfig, result: TrainResult) -> TrainResult:
    """Say how it ended: the summary, or the command to go on with. Returns the result with the evaluations in it."""
    if evaluations := read_evaluations(result.folder / COMPLETIONS_FILE):
        before = next((each for each in evaluations if each.step == 0), None)
        result = replace(result, before=before, after=evaluations[-1])
    folder, stopped_by = result.folder, result.stopped_by
    if stopped_by is not None:
        ended = f"stopped by {stopped_by.name} after step {result.steps}, which is saved in {folder}"
        print(f"{ended}; to go on, launch again:")
        settings = shlex.quote(str(folder / SETTINGS_FILE))
        print(f"  python -m local_distill.train_on_policy_local --config {settings} --resume")
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
    return result


def write_settings(config: TrainConfig, folder: Path) -> None:
    """Write the settings of the run as a file that ``--config`` takes."""
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "resume"}
    given["output_dir"] = str(folder)
    write_whole(folder / SETTINGS_FILE, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))


def off_policy_note(config: TrainConfig) -> str:
    """Return a word on samples that the loss takes for the student's own though they are not, or nothing."""
    return LOSSES.get(config.loss_name).note(config)


def auto_loss_note(config: TrainConfig) -> str:
    """Return which form --loss auto took, and why; nothing where a loss was named."""
    if config.loss != "auto":
        return ""
    if config.kl_discount:
        return f"--loss auto: policy_gradient, for --kl_discount {config.kl_discount:g} weighs the sampled tokens"
    if config.teacher_gives == TeacherView.tokens:
        return "--loss auto: policy_gradient, for the teacher gives the log-probs of the sampled tokens alone"
    if config.teacher_gives == TeacherView.whole_distribution:
        if config.top_k is not None:
            return f"--loss auto: reverse_kl over the {config.top_k} top tokens of --top_k and a tail"
        return "--loss auto: reverse_kl over every token, exact, for the teacher gives its whole distribution"
    return (
        f"--loss auto: reverse_kl over the teacher's {config.loss_top_k} likeliest tokens and a tail, for it cannot "
        "hand over its whole distribution"
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
