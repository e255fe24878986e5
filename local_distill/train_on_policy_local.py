"""The documented entry: parse the settings, check them, build the parts, run the loop.

python -m local_distill.train_on_policy_local --student_model … --teacher_model …
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # an installed DeepSpeed otherwise warns at import

import transformers
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from local_distill.batching import MicroBatches, split_substeps
from local_distill.checkpoint import Checkpointer, last_saved
from local_distill.cli import parse_config
from local_distill.config import SAMPLED_LOSSES, TrainConfig
from local_distill.distributed import most_anywhere, on_main_process
from local_distill.errors import RunError, UserError
from local_distill.evaluation import Evaluator, HeldOutEvaluator, NoEvaluation
from local_distill.halving import HalveMicroBatches
from local_distill.host_memory import keep_freed_memory
from local_distill.inputs import Inputs, check_inputs
from local_distill.interruption import StopRequest
from local_distill.learner import Learner
from local_distill.loop import Schedule, distil
from local_distill.losses import Loss, TeacherView, make_loss
from local_distill.models import add_lora, causal_lm, load_lora
from local_distill.preflight import (
    RunFolder,
    check_disk_space,
    check_launch,
    check_steps_left,
    checkpoint_bytes,
    launch_in_words,
    open_run_folder,
)
from local_distill.profiling import NoProfiler, Profiler, StepProfiler
from local_distill.records import COMPLETIONS_FILE, METRICS_FILE, read_evaluations, training_totals
from local_distill.rollouts.choosing import NucleusSampling
from local_distill.rollouts.hf import HFRollouts
from local_distill.scorer import TokenScorer, check_head
from local_distill.summary import show_summary, write_summary
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.teachers.zero3 import load_zero3_teacher
from local_distill.terminal import open_terminal
from local_distill.tracking import RunLog, open_run_log
from local_distill.types import RolloutEngine, Teacher
from local_distill.updates import Updates, learning_rate_at, make_updates

SETTINGS_FILE = "config.yaml"
READABLE = NucleusSampling(temperature=0.7, top_p=0.9)  # as models are used; greedy decoding of a weak one only loops


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n."""
    try:
        return train(parse_config(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process finds the same mistake; one a machine says it
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def train(config: TrainConfig) -> int:
    """Distil as ``config`` says. Returns the exit code. Raises UserError for what the user can mend."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    inputs = check_inputs(config)
    accelerator = Accelerator(
        mixed_precision=inputs.precision.mixed,
        log_with=list(inputs.trackers) or None,
        project_dir=".",  # accelerate insists on one; the log puts every tracker's files into the run's folder
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_launch(accelerator, config.batch_size, inputs.precision)
    run = on_main_process(accelerator, lambda: open_run_folder(config.output_dir, config.resume, inputs.fixed_settings))
    check_steps_left(run, config.steps)
    check_disk_space(run.path, checkpoint_bytes(inputs.student, inputs.lora), config.keep_checkpoints)
    terminal = open_terminal(config.steps, run.first_step, accelerator.is_main_process)
    stop = StopRequest()
    with open_run_log(
        accelerator, terminal, run.path, asdict(config), resumed_step=run.first_step if run.checkpoint else None,
        wandb_project=config.wandb_project, wandb_name=config.wandb_name, wandb_mode=config.wandb_mode,
    ) as log:  # fmt: skip
        announce(inputs, accelerator, run, log)
        if accelerator.is_main_process:
            write_settings(config, run.path)
        try:
            done = build_and_run(inputs, accelerator, run, log, stop)
        except RunError as error:
            raise UserError(f"{error}; {last_saved(run.path)}") from error
    stop.restore()
    if accelerator.is_main_process:
        finish(config, run, done, stop)
    accelerator.end_training()
    return stop.exit_code


def announce(inputs: Inputs, accelerator: Accelerator, run: RunFolder, log: RunLog) -> None:
    """Say what is about to happen."""
    config = inputs.config
    log.say(f"{config.student_model} learns from {config.teacher_model}, in {run.path}")
    log.say(launch_in_words(accelerator, inputs.precision))
    notes = (*run.notes, inputs.precision.note, inputs.stops.note, off_policy_note(config))
    for note in filter(None, (*notes, unused_lora_note(config), *inputs.prompts.notes)):
        log.say(note)


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
    if config.use_lora or not unused:
        return ""
    return f"--{unused[0]} is not used: all weights are trained, an adapter wants --use_lora"


def build_and_run(inputs: Inputs, accelerator: Accelerator, run: RunFolder, log: RunLog, stop: StopRequest) -> int:
    """Load the models, put the parts together, run the loop. Returns the number of steps done."""
    config = inputs.config
    model = load_student(inputs, run).to(accelerator.device)
    scorer = TokenScorer(model, inputs.vocab_size)
    check_head(scorer, "--student_model")
    loss = make_loss(
        config.loss,
        kl_coef=config.kl_coef,
        kl_discount=config.kl_discount,
        ratio_cap=config.ratio_cap,
        ppo_clip=config.ppo_clip,
        jsd_beta=config.jsd_beta,
        top_k=config.top_k,
        top_k_support=config.top_k_support,
    )
    teacher, judge = load_teacher(inputs, accelerator, loss)
    updates = make_updates(accelerator, scorer, config.weight_decay, config.max_grad_norm)
    if run.checkpoint:
        updates.load_optimizer_state(run.checkpoint.optimizer_state())
    rollouts = rollout_engine(inputs, accelerator, model, log)
    micro_batches = MicroBatches(config.microbatch_tokens, partial(most_anywhere, accelerator))
    collate = partial(
        split_substeps,
        batch_size=config.batch_size,
        group_size=config.group_size,
        num_substeps=config.num_substeps,
        grad_accum=config.grad_accum,
        num_processes=accelerator.num_processes,
        micro_batches=micro_batches,
        pad_id=inputs.pad_id,
    )
    return distil(
        accelerator,
        prompts=inputs.prompts,
        engine=rollouts(choose=NucleusSampling(config.temperature, config.top_p), group_size=config.group_size),
        collate=collate,
        teacher=teacher,
        learner=make_learner(config, accelerator, updates, loss, HalveMicroBatches(micro_batches, log.say)),
        evaluator=make_evaluator(inputs, accelerator, updates, judge, rollouts, micro_batches),
        saver=make_checkpointer(inputs, accelerator, updates, model, run),
        log=log,
        schedule=make_schedule(config, run),
        stop=stop,
        profiler=make_profiler(config, accelerator, run, log),
    )


def rollout_engine(
    inputs: Inputs, accelerator: Accelerator, model: nn.Module, log: RunLog
) -> Callable[..., RolloutEngine]:
    """What samples from the model, once it is told how to choose and how often."""
    config = inputs.config
    settings: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "stop_ids": inputs.stops.ids,
        "pad_id": inputs.pad_id,
        "seed": config.seed,
    }
    if config.rollouts == "continuous":
        # Older transformers cannot import it.
        from local_distill.rollouts.continuous import ContinuousRollouts, SampledModel

        sampled = SampledModel(model, inputs.precision.dtype)
        return partial(ContinuousRollouts, sampled, process=accelerator.process_index, **settings)
    settings |= {"vocab_size": inputs.vocab_size, "batch_size": config.sampling_batch_size, "say": log.say}
    return partial(HFRollouts, model, autocast=accelerator.autocast, **settings)


def load_student(inputs: Inputs, run: RunFolder) -> nn.Module:
    """The model to train, from the checkpoint where there is one: fp32 masters, or a frozen base and an adapter."""
    config, files = inputs.config, inputs.student
    model: nn.Module
    if inputs.lora:
        base = files.load(inputs.precision.dtype)
        model = load_lora(base, run.checkpoint.path) if run.checkpoint else add_lora(base, inputs.lora, config.seed)
    else:
        model = (replace(files, path=str(run.checkpoint.path)) if run.checkpoint else files).load(torch.float32)
    if config.gradient_checkpointing:
        causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    return model


def load_teacher(inputs: Inputs, accelerator: Accelerator, loss: Loss) -> tuple[Teacher, Teacher]:
    """The model to learn from, whole or in shares, as training reads it and as evaluation does."""
    device, dtype, top_k = accelerator.device, inputs.precision.dtype, inputs.config.top_k or 0
    if inputs.teacher_sharding is not None:
        sharded = load_zero3_teacher(inputs.teacher, inputs.teacher_sharding, dtype, inputs.vocab_size)
        plain = LocalTeacher(sharded, device)
        return (TopTokensTeacher(sharded, device, top_k) if loss.needs == "top" else plain), plain
    scorer = TokenScorer(inputs.teacher.load(dtype).to(device), inputs.vocab_size)
    check_head(scorer, "--teacher_model")
    whole = WholeDistributionTeacher(scorer, device)
    readers: dict[TeacherView, Teacher] = {
        "tokens": LocalTeacher(scorer, device),
        "top": TopTokensTeacher(scorer, device, top_k),
        "whole": whole,
    }
    return readers[loss.needs], whole


def make_learner(
    config: TrainConfig, accelerator: Accelerator, updates: Updates, loss: Loss, halve: HalveMicroBatches
) -> Learner:
    """The update rule that the settings ask for."""
    rate = partial(
        learning_rate_at,
        peak=config.learning_rate or 0.0,
        total=config.steps,
        warmup=config.warmup_steps,
        scheduler=config.lr_scheduler,
    )
    return Learner(accelerator, updates, loss, rate, config.seed, halve)


def make_evaluator(
    inputs: Inputs, accelerator: Accelerator, updates: Updates, teacher: Teacher,
    rollouts: Callable[..., RolloutEngine], micro_batches: MicroBatches,
) -> Evaluator:  # fmt: skip
    """Evaluation on the prompts that were held out, in batches no larger than training's."""
    config, held_out = inputs.config, inputs.prompts.held_out
    if not held_out:
        return NoEvaluation()
    busiest = -(-config.batch_size // (config.num_substeps * accelerator.num_processes)) * config.group_size
    return HeldOutEvaluator(
        accelerator,
        student=updates.student,
        teacher=teacher,
        sampler=rollouts(choose=NucleusSampling(1.0, 1.0), group_size=1),
        reader=rollouts(choose=READABLE, group_size=1),
        prompts=held_out,
        tokenizer=inputs.student.tokenizer,
        pad_id=inputs.pad_id,
        micro_batch=max(1, busiest // config.grad_accum),
        micro_batches=micro_batches,
    )


def make_checkpointer(
    inputs: Inputs, accelerator: Accelerator, updates: Updates, model: nn.Module, run: RunFolder
) -> Checkpointer:
    """Where the student is kept; what is saved stops on all the tokens that it was trained to stop on."""
    generation = copy.deepcopy(inputs.student.generation)
    generation.eos_token_id = list(inputs.stops.ids)
    generation.pad_token_id = inputs.pad_id
    return Checkpointer(
        accelerator,
        updates,
        model,
        tokenizer=inputs.student.tokenizer,
        generation=generation,
        settings=inputs.fixed_settings,
        output_dir=run.path,
        keep=inputs.config.keep_checkpoints,
    )


def make_profiler(config: TrainConfig, accelerator: Accelerator, run: RunFolder, log: RunLog) -> Profiler:
    """Who watches the first steps, in the first process alone."""
    if not config.profile or not accelerator.is_main_process:
        return NoProfiler()
    left = config.steps - run.first_step
    if config.profile >= left:
        log.say(f"--profile {config.profile}: nothing is profiled, too few steps are left ({left}, less the first)")
        return NoProfiler()
    return StepProfiler(config.profile, run.path / "profile", log.say)


def make_schedule(config: TrainConfig, run: RunFolder) -> Schedule:
    """The steps to do; a run that was stopped before an evaluation that was due begins with it."""
    schedule = Schedule(run.first_step, run.first_step == 0, config.steps, config.eval_every, config.save_every)
    if run.checkpoint is None or not schedule.evaluates_after(run.first_step):
        return schedule
    done = {evaluation.step for evaluation in read_evaluations(run.path / COMPLETIONS_FILE)}
    return replace(schedule, evaluates_first=run.first_step not in done)


def finish(config: TrainConfig, run: RunFolder, done: int, stop: StopRequest) -> None:
    """Say how it ended: the summary, or the command to go on with."""
    if stop.signal is not None:
        print(f"stopped by {stop.signal.name} after step {done}, which is saved in {run.path}; to go on, launch again:")
        print(f"  python -m local_distill.train_on_policy_local --config {run.path / SETTINGS_FILE} --resume")
        return
    evaluations = read_evaluations(run.path / COMPLETIONS_FILE)
    before, after = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
    tokens, seconds = training_totals(run.path / METRICS_FILE)
    facts: dict[str, str | int | float] = {
        "student": config.student_model,
        "teacher": config.teacher_model,
        "loss": config.loss,
        "steps": done,
        "tokens": tokens,
        "seconds": seconds,
        "checkpoint": str(run.path / f"step-{done}"),
    }
    show_summary(before, after, facts)
    write_summary(run.path, before, after, facts)


def write_settings(config: TrainConfig, folder: Path) -> None:
    """The settings of the run, as a file that ``--config`` takes."""
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "resume"}
    given["output_dir"] = str(folder)
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
