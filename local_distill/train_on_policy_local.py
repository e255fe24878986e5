"""The documented entry: parse the settings, check them, build the parts, run the loop.

python -m local_distill.train_on_policy_local --student_model … --teacher_model …
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported, which takes seconds
    from local_distill.packages import leave_out_working_folder
    from local_distill.process.signals import ending_on_signals

    leave_out_working_folder()
    to_the_end = ending_on_signals()
    to_the_end.__enter__()

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState

from local_distill.build import build_and_run, gap_watch, learning_rates
from local_distill.config.train_config import TrainConfig, parse_config
from local_distill.config.train_fields import SAMPLED_LOSSES
from local_distill.engines import Site, open_ahead
from local_distill.errors import RunError, UserError
from local_distill.inputs import Inputs, check_inputs, with_template_date
from local_distill.monitor.log import RunLog, open_run_log
from local_distill.monitor.summary import show_summary, write_summary
from local_distill.monitor.terminal import Terminal, open_terminal
from local_distill.plan.advice import check_memory
from local_distill.process.distributed import alone, losing_others, on_every_process, on_main_process, processes_meet
from local_distill.process.exit_codes import exit_code_of
from local_distill.process.host_memory import keep_freed_memory
from local_distill.process.isolation import process_left_as_found
from local_distill.process.launch import check_launch, launch_in_words, sums_in_words
from local_distill.process.signals import Stopped, ending_on_signals
from local_distill.report.page import told_of
from local_distill.runs.checkpoints import last_saved
from local_distill.runs.environment import write_environment
from local_distill.runs.folder import (
    RunFolder,
    check_checkpoint_is_here,
    check_disk_space,
    check_steps_left,
    open_run_folder,
)
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE, SETTINGS_FILE, read_settings
from local_distill.runs.records import lost_records, read_evaluations, training_totals
from local_distill.runs.result import TrainResult
from local_distill.runs.whole_files import write_whole
from local_distill.training.checkpoint import check_saving, checkpoint_bytes
from local_distill.training.out_of_memory import DidNotFitError, is_out_of_memory

UNBOUNDED_WORK = 3600.0
"""Seconds that one process may take alone where no setting says: to hash a large checkpoint, for long samples."""
LONGEST_WAIT = 30 * 24 * 3600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n."""
    with ending_on_signals():
        return exit_code_of(lambda: train(parse_config(sys.argv[1:] if argv is None else argv)).exit_code)


def train(config: TrainConfig) -> TrainResult:
    """Distil as ``config`` says, print what happens, and leave everything in the run's folder.

    As often as wanted in one process, from any thread; Ctrl-C and SIGTERM are heeded in the main thread alone.
    Raises UserError, in one line, for what the user can mend.
    """
    # The processes meet before anything is checked, so that a mistake on one machine ends all.
    with process_left_as_found(), processes_meet(longest_wait(config)), losing_others(), ExitStack() as holding:
        return run_training(config, holding)


def run_training(config: TrainConfig, holding: ExitStack) -> TrainResult:
    """``train`` in a process that has met the others of its launch. holding: closed when nothing more is written."""
    # Midnight may come between two processes.
    config = on_main_process(PartialState(), lambda: with_template_date(config))
    inputs = on_every_process(lambda: check_inputs(config))
    accelerator = Accelerator(
        mixed_precision=inputs.precision.mixed,
        log_with=list(inputs.trackers) or None,
        project_dir=".",  # accelerate insists on one; the log puts every tracker's files into the run's folder
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_launch(accelerator, config.batch_size, inputs.precision)
    place = config.output_dir, config.resume, inputs.fixed_settings
    run = on_main_process(accelerator, lambda: open_run_folder(*place, holding))
    check_steps_left(run, config.steps)
    on_every_process(lambda: check_checkpoint_is_here(run))
    student, generation = inputs.pair.student, inputs.saved_generation
    needed = checkpoint_bytes(student, inputs.lora)
    on_main_process(accelerator, lambda: check_disk_space(run.path, needed, config.keep_checkpoints))
    on_main_process(accelerator, lambda: check_saving(student, inputs.lora, generation, run.path))
    with ending_in_one_line(run.path), losing_others():
        result = carry_out(inputs, accelerator, run)
    accelerator.end_training()
    return result


@contextmanager
def ending_in_one_line(folder: Path) -> Iterator[None]:
    """What ends a run early, told together with what was saved of it."""
    try:
        yield
    except RunError as error:
        told = UserError(f"{error}; {last_saved(folder)}")
        told.alone = error.alone
        raise told from error
    except Stopped as stopped:
        raise Stopped(stopped.signal, f"at once; {last_saved(folder)}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
        if not isinstance(error, DidNotFitError):
            reason = (
                f"--microbatch_tokens: out of memory while loading, scoring or evaluating ({reason.split('. ')[0]}); "
                'lower it, or see "Out of memory?" in the README'
            )
        raise alone(UserError(f"{reason}; {last_saved(folder)}")) from error


def carry_out(inputs: Inputs, accelerator: Accelerator, run: RunFolder) -> TrainResult:
    """The run, from its first word to its last."""
    config = inputs.config
    run = replace(run, notes=(*run.notes, schedule_note(config, run)))  # before the settings of before are replaced
    terminal = open_terminal(config.steps, run.first_step, accelerator.is_main_process)
    on_every_process(lambda: check_memory(inputs, accelerator, terminal.say))
    with ExitStack() as closing:
        site = Site(inputs, accelerator, terminal.say, closing)
        ahead = open_ahead(site)
        log = on_every_process(partial(open_log, inputs, accelerator, terminal, run))
        closing.enter_context(log)
        announce(inputs, accelerator, run, log)
        done, stopped_by = build_and_run(site, ahead, run, log)
    result = TrainResult(run.path, done, stopped_by=stopped_by)
    # All wait: a launcher ends the others when one process ends with another code than 0.
    return on_every_process(lambda: finish(config, result) if accelerator.is_main_process else result)


def open_log(inputs: Inputs, accelerator: Accelerator, terminal: Terminal, run: RunFolder) -> RunLog:
    """The log of the run; and in its folder, what it is and what it runs on. Raises UserError."""
    config = inputs.config
    log = open_run_log(
        accelerator, terminal, run.path, asdict(config), resumed_step=run.first_step if run.checkpoint else None,
        wandb_project=config.wandb_project, wandb_name=config.wandb_name, wandb_mode=config.wandb_mode,
        watchers=[gap_watch(inputs, terminal.say)],
    )  # fmt: skip
    if accelerator.is_main_process:
        write_settings(config, run.path)
        write_environment(run.path, accelerator.num_processes, resumed=run.checkpoint is not None)
    return log


def longest_wait(config: TrainConfig) -> timedelta:
    """How long one process may lawfully be waited for by the others: what settings bound, and an hour for the rest.

    Requests to a server may follow each other where they are more than may be under way, and weights go before them.
    """
    requests = max(config.batch_size * config.group_size, config.eval_prompts or 0)
    in_turn = 2 + -(-requests // config.server_concurrency) if config.rollouts_url or config.teacher_url else 0
    seconds = UNBOUNDED_WORK + in_turn * (config.server_timeout + config.server_patience)
    return timedelta(seconds=min(seconds, LONGEST_WAIT))


def announce(inputs: Inputs, accelerator: Accelerator, run: RunFolder, log: RunLog) -> None:
    """Say what is about to happen."""
    config = inputs.config
    log.say(f"{config.student_model} learns from {teacher_in_words(config)}, in {run.path}")
    log.say(launch_in_words(accelerator, inputs.precision))
    kept_here = run.checkpoint is not None and run.checkpoint.path.resolve().parent == run.path.resolve()
    lost = lost_records(run.path, run.first_step) if kept_here and accelerator.is_main_process else ()
    notes = (*run.notes, *lost, sums_in_words(accelerator), *inputs.notes, off_policy_note(config))
    for note in filter(None, (*notes, unused_lora_note(config), *inputs.prompts.notes)):
        log.say(note)


def teacher_in_words(config: TrainConfig) -> str:
    """Who is learned from."""
    if config.teacher_kind == "self":
        return "itself without its adapter"
    where = f" at {config.teacher_url}" if config.teacher_url else ""
    return f"{config.teacher_model or 'what is served'}{where}"


def off_policy_note(config: TrainConfig) -> str:
    """A word on samples that the loss takes for the student's own though they are not, or nothing."""
    sampled = f"samples at temperature {config.temperature:g} and top-p {config.top_p:g}"
    remedy = "--temperature 1 --top_p 1 is exact (docs/method.md)"
    if config.loss == "policy_gradient" and (config.temperature != 1 or config.top_p < 1):
        return f"{sampled} are not quite the student's own, which policy_gradient takes them for: {remedy}"
    if config.loss in SAMPLED_LOSSES and config.top_p < 1:
        return f"{sampled} never show the tail of the student's distribution, which no ratio corrects: {remedy}"
    return ""


def unused_lora_note(config: TrainConfig) -> str:
    """A word on settings of an adapter that there will not be, or nothing."""
    unused = [f.name for f in fields(config) if f.name.startswith("lora_") and getattr(config, f.name) != f.default]
    if not unused or (config.use_lora and not config.init_adapter):
        return ""
    if config.init_adapter:
        return f"--{unused[0]} is not used: --init_adapter brings its own"
    return f"--{unused[0]} is not used: all weights are trained, an adapter wants --use_lora"


def schedule_note(config: TrainConfig, run: RunFolder) -> str:
    """A word on a learning rate that jumps, as the schedule is stretched to other steps than before, or nothing."""
    if run.checkpoint is None or config.schedule_steps is not None:
        return ""
    before = read_settings(run.checkpoint.path.resolve().parent)
    steps = before.get("schedule_steps") or before.get("steps")
    if not isinstance(steps, int):
        return ""
    earlier, now = (learning_rates(config, total)(run.first_step) for total in (steps, config.steps))
    if earlier == now:
        return ""
    return (
        f"--lr_scheduler {config.lr_scheduler} now ends after {config.steps} steps, not {steps}: the learning rate "
        f"goes on at {now:.3g}, not at {earlier:.3g}; --schedule_steps {steps} keeps the schedule"
    )


def with_evaluations(result: TrainResult) -> TrainResult:
    """The result with the evaluation before training and the last one after it, where there are any."""
    evaluations = read_evaluations(result.folder / COMPLETIONS_FILE)
    before = next((each for each in evaluations if each.step == 0), None)
    return replace(result, before=before, after=evaluations[-1]) if evaluations else result


def finish(config: TrainConfig, result: TrainResult) -> TrainResult:
    """Say how it ended: the summary, or the command to go on with. Returns the result with the evaluations in it."""
    result = with_evaluations(result)
    folder, stopped_by = result.folder, result.stopped_by
    if stopped_by is not None:
        ended = f"stopped by {stopped_by.name} after step {result.steps}, which is saved in {folder}"
        print(f"{ended}; to go on, launch again:")
        settings = shlex.quote(str(folder / SETTINGS_FILE))
        print(f"  python -m local_distill.train_on_policy_local --config {settings} --resume")
        print(told_of(folder))
        return result
    tokens, seconds = training_totals(folder / METRICS_FILE)
    facts: dict[str, str | int | float] = {
        "student": config.student_model,
        "teacher": teacher_in_words(config),
        "loss": config.loss,
        "steps": result.steps,
        "tokens": tokens,
        "seconds": seconds,
        "checkpoint": str(result.checkpoint),
    }
    if result.after and not result.before:
        print(f"{folder / COMPLETIONS_FILE}: has no evaluation before training, so there is nothing to compare with")
    show_summary(result.before, result.after, facts)
    write_summary(folder, result.before, result.after, facts)
    print(told_of(folder))
    return result


def write_settings(config: TrainConfig, folder: Path) -> None:
    """The settings of the run, as a file that ``--config`` takes."""
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "resume"}
    given["output_dir"] = str(folder)
    write_whole(folder / SETTINGS_FILE, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    sys.exit(main())
