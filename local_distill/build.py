"""A run from its settings to its result, in four calls that the entry makes one after the other.

    check        → Launch    settings, files, launch, folder, disk, memory: all that can be refused before any weights
    open_models  → Models    servers are asked, the log begins, both models come to their places and are tried
    build        → steps     what samples, updates, evaluates and saves, put into the loop
    run          → result    the loop, and the last word

Below them is what they are made of, in the order in which it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

from local_distill.announcements import announce, conclude
from local_distill.backends import (
    MakeSampler,
    Opening,
    OpenSampler,
    Student,
    TeacherReaders,
    sampler_of,
    teacher_of,
)
from local_distill.batch import Prompt, RolloutEngine, Teacher
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.eval.held_out import HeldOutEvaluator, NoEvaluation, verifier_of
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.inputs import Inputs, Launch, check_inputs, learning_rates, loss_of
from local_distill.loop import Evaluator, Schedule, distil
from local_distill.losses.loss import Loss
from local_distill.losses.sampler_mismatch import WRONG_ENGINE, MismatchWatch, rounding_of
from local_distill.models.adapters import load_lora
from local_distill.models.files import recompute_activations
from local_distill.models.reach import freeze_unreached, has_experts
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import can_share_prompts, check_quiet, check_scorer
from local_distill.monitor.log import RunLog, open_run_log
from local_distill.monitor.profiler import Profiler, StepProfiler
from local_distill.monitor.terminal import open_terminal
from local_distill.plan.advice import check_memory
from local_distill.plan.fitting import micro_batch_tokens
from local_distill.process.distributed import any_process, on_every_process, on_main_process, reduce_max
from local_distill.process.interruption import StopRequest
from local_distill.process.launch import open_accelerator
from local_distill.rollouts.checking import check_sampling
from local_distill.rollouts.growing import GrowingRollouts, growing_length
from local_distill.rollouts.hf import sampling_with
from local_distill.rollouts.mixed import MixedRollouts, falling_share
from local_distill.rollouts.overlap import OverlappedRollouts, ServedEngine
from local_distill.rollouts.student_checks import OTHER_ENGINE
from local_distill.runs.evaluations import TrainResult
from local_distill.runs.folder import RunFolder, check_checkpoint_is_here, open_run_folder
from local_distill.runs.layout import COMPLETIONS_FILE
from local_distill.runs.records import read_evaluations
from local_distill.training.batching import MicroBatches, share_of_process, split_substeps
from local_distill.training.checkpoint import Checkpointer, check_saving, moments_of
from local_distill.training.device_memory import SmallerMicroBatches
from local_distill.training.learner import Learner
from local_distill.training.optimizer import Updates, make_updates

READABLE = NucleusSampling(temperature=0.7, top_p=0.9)  # as models are used; greedy decoding of a weak one only loops


@dataclass(frozen=True)
class Models:
    """Both models are in their places.

    student: not wrapped for training. sampler: was asked whether it is there. log: of the run, open. shares_prompts:
    whether both read a prompt once for all its rollouts.
    """

    student: TokenScorer
    teacher: TeacherReaders
    loss: Loss
    sampler: OpenSampler
    log: RunLog
    shares_prompts: bool


def check(config: TrainConfig, holding: ExitStack | None) -> Launch:
    """Refuse what can be refused before any weights are loaded. Raises UserError at the first thing that is wrong.

    holding: keeps the run's folder from other runs; closed when nothing more is written. None to look only.
    """
    inputs = check_inputs(config)
    config = inputs.config
    accelerator = open_accelerator(inputs.precision, inputs.trackers, config.batch_size)
    place = config.output_dir, config.resume, inputs.fixed_settings, config.steps
    folder = on_main_process(accelerator, lambda: open_run_folder(*place, holding))
    on_every_process(lambda: check_checkpoint_is_here(folder))
    saved = inputs.pair.student, inputs.lora, inputs.saved_generation
    on_main_process(
        accelerator, lambda: check_saving(*saved, folder.path, config.keep_checkpoints, beside=holding is not None)
    )
    terminal = open_terminal(config.steps, folder.first_step, accelerator.is_main_process)
    on_every_process(lambda: check_memory(inputs, accelerator, terminal.warn))
    return Launch(inputs, accelerator, folder, terminal, ExitStack())


def open_models(launch: Launch) -> Models:
    """Ask the servers, begin the log, load both models and try them. Raises UserError."""
    inputs, accelerator = launch.inputs, launch.accelerator
    opening = opening_of(launch)
    open_teacher = teacher_of(inputs.config).open(opening)
    sampler = sampler_of(inputs.config).open(opening)
    log = launch.closing.enter_context(on_every_process(lambda: open_log(launch)))
    on_every_process(lambda: announce(inputs, accelerator, launch.folder, log))
    log.doing("loading the student")
    model = on_every_process(lambda: load_student(inputs, launch.folder)).to(accelerator.device)
    freeze_unreached(model)
    student = TokenScorer(model, inputs.pair.vocab_size)
    log.doing("trying the student on a few tokens")
    on_every_process(lambda: try_student(launch, student))
    student.needs_mask = any_process(accelerator, student.needs_mask)
    grouped = inputs.config.group_size > 1
    student.shares_prompts = grouped and not any_process(accelerator, not can_share_prompts(student))
    loss = loss_of(launch.inputs.config)
    log.doing("loading the teacher")
    teacher = on_every_process(lambda: open_teacher(student, loss.needs))
    shares_prompts = student.shares_prompts and teacher.shares_prompts
    if grouped and not shares_prompts:
        whose = "teacher's" if student.shares_prompts else "student's"
        log.say(f"a prompt is read once for each rollout: the {whose} attention cannot take several completions of it")
    return Models(student, teacher, loss, sampler, log, shares_prompts)


def build(launch: Launch, models: Models) -> Callable[[StopRequest], int]:
    """Put the parts of the loop together. Returns the loop, which gives the number of steps done."""
    inputs, config, accelerator, folder = launch.inputs, launch.inputs.config, launch.accelerator, launch.folder
    model, log = models.student.model, models.log
    updates = make_updates(accelerator, models.student, config.weight_decay, config.max_grad_norm, config.adam_beta2)
    if folder.checkpoint:
        updates.load_optimizer_state(on_every_process(partial(moments_of, folder.checkpoint)))
    params = SamplingParams(
        NucleusSampling(config.temperature, config.top_p), config.group_size, config.max_new_tokens,
        frozenset(inputs.pair.stops.ids), config.seed,
    )  # fmt: skip
    make_sampler = models.sampler(Student(model, updates))
    engine = growing(config, make_sampler, params)
    if config.overlap:
        if not isinstance(engine, ServedEngine):
            raise UserError(
                f"--overlap: --rollouts {config.rollouts_kind} cannot draw while this process trains; drop it"
            )
        engine = overlapped = OverlappedRollouts(engine, partial(own_share, launch), lambda: updates.version)
        launch.closing.callback(overlapped.close)
    if config.teacher_share:
        engine = shared_with_teacher(launch, models, params, engine)
    # With all models in their places, for what is left of the memory is looked at.
    log.doing("looking at how much fits the memory")
    most = config.microbatch_tokens
    if most is None:
        most = micro_batch_tokens(inputs, accelerator, models.student, updates.to_come(), log.warn)
    micro_batches = MicroBatches(most, partial(reduce_max, accelerator), models.shares_prompts)
    collate = partial(
        split_substeps,
        batch_size=config.batch_size,
        group_size=config.group_size,
        num_substeps=config.num_substeps,
        grad_accum=config.grad_accum,
        num_processes=accelerator.num_processes,
        micro_batches=micro_batches,
        pad_id=inputs.pair.pad_id,
    )
    smaller = SmallerMicroBatches(micro_batches, log.warn)
    rates = learning_rates(config, config.steps)
    learner = Learner(accelerator, updates, models.loss, rates, config.seed, smaller, config.epochs_per_batch)
    evaluator = make_evaluator(launch, updates, models.teacher.evaluation, make_sampler, params, micro_batches)
    saver = Checkpointer(
        accelerator,
        updates,
        model,
        tokenizer=inputs.pair.student.tokenizer,
        generation=inputs.saved_generation,
        settings=inputs.fixed_settings,
        output_dir=folder.path,
        keep=config.keep_checkpoints,
    )
    schedule, profiler = make_schedule(config, folder), make_profiler(launch, log)
    return lambda stop: distil(
        accelerator, inputs.prompts, engine, collate, models.teacher.training, learner, evaluator, saver, log, schedule,
        stop, profiler,
    )  # fmt: skip


def run(launch: Launch, steps: Callable[[StopRequest], int]) -> TrainResult:
    """Run the loop, and say what came of it."""
    # Before the loop there is nothing to save, and a signal ends the command at once.
    stop = StopRequest(launch.terminal.notice)
    launch.closing.callback(stop.restore)
    done = steps(stop)
    launch.closing.close()  # the files are whole before they are read
    stopped = stop.signal if stop.heeded or done < launch.inputs.config.steps else None  # else it came too late
    result = TrainResult(launch.folder.path, done, stopped_by=stopped)
    # All wait: a launcher ends the others when one process ends with another code than 0.
    return on_every_process(
        lambda: conclude(launch.inputs.config, result) if launch.accelerator.is_main_process else result
    )


def opening_of(launch: Launch) -> Opening:
    """Return what a teacher and a sampler are opened with."""
    inputs = launch.inputs
    return Opening(
        inputs.config, inputs.pair, inputs.lora, inputs.precision.dtype, inputs.longest, launch.accelerator,
        launch.folder.path, launch.say, launch.closing,
    )  # fmt: skip


def shared_with_teacher(
    launch: Launch, models: Models, params: SamplingParams, student: RolloutEngine
) -> RolloutEngine:
    """Return an engine that lets the teacher write a share of the completions, by our own loop."""
    config, model = launch.inputs.config, models.teacher.model
    if model is None:
        raise UserError(
            f"--teacher_share: --teacher_backend {config.teacher_kind} gave no model to sample with; drop it"
        )
    teacher = growing(config, sampling_with(model, opening_of(launch)), params)
    share = falling_share(config.teacher_share, config.teacher_share_steps)
    return MixedRollouts(student, teacher, share, config.batch_size, config.seed)


def growing(config: TrainConfig, make: MakeSampler, params: SamplingParams) -> RolloutEngine:
    """Return an engine for training, of completions that grow where they are to."""
    if config.start_new_tokens is None:
        return make(params)
    longest = growing_length(config.start_new_tokens, params.max_new_tokens, config.schedule_steps or config.steps)
    return GrowingRollouts(lambda tokens: make(replace(params, max_new_tokens=tokens)), longest)


def own_share(launch: Launch, step: int) -> list[tuple[int, Prompt]] | None:
    """Return (position, prompt) of this process in a step; None past the last step."""
    if step >= launch.inputs.config.steps:
        return None
    accelerator = launch.accelerator
    return share_of_process(launch.inputs.prompts.batch(step), accelerator.process_index, accelerator.num_processes)


def open_log(launch: Launch) -> RunLog:
    """Begin the log of the run. Raises UserError where a tracker does not start, or another run's files are there."""
    config, folder = launch.inputs.config, launch.folder
    return open_run_log(
        launch.accelerator, launch.terminal, folder.path, asdict(config),
        resumed_step=folder.first_step if folder.checkpoint else None, wandb_project=config.wandb_project,
        wandb_name=config.wandb_name, wandb_mode=config.wandb_mode,
        watchers=[mismatch_watch(launch.inputs, launch.terminal.warn)],
    )  # fmt: skip


def mismatch_watch(inputs: Inputs, say: Callable[[str], None]) -> MismatchWatch:
    """Who looks at what samples were drawn with, and stops the run unless updates or dropout lie in between."""
    config, dropout = inputs.config, inputs.lora.dropout if inputs.lora else 0.0
    if dropout or config.overlap or config.num_substeps > 1:
        return MismatchWatch(say)
    if sampler_of(config).memory.own_loop:
        most = rounding_of(inputs.precision.dtype, has_experts(inputs.pair.student.config))
        return MismatchWatch(say, most, OTHER_ENGINE)
    return MismatchWatch(say, WRONG_ENGINE, "look at the engine's weights and settings, or use --rollouts hf")


def load_student(inputs: Inputs, folder: RunFolder) -> nn.Module:
    """Load the model to train: fp32 masters, or a frozen base with an adapter; from the checkpoint if there is one."""
    config, files = inputs.config, inputs.pair.student
    model: nn.Module
    if inputs.lora:
        base = files.load(inputs.precision.dtype)
        model = load_lora(base, folder.checkpoint.path) if folder.checkpoint else inputs.lora.put_on(base, config.seed)
    else:
        model = (files.with_weights_of(folder.checkpoint.path) if folder.checkpoint else files).load(torch.float32)
    if config.gradient_checkpointing:
        recompute_activations(model)
    return model


def try_student(launch: Launch, student: TokenScorer) -> None:
    """Raise UserError for a student that would not be sampled, scored and trained as one and the same."""
    flag = "--student_model"
    check_scorer(student, flag)
    check_quiet(student, flag)
    if sampler_of(launch.inputs.config).memory.own_loop:
        check_sampling(
            student, flag, pad_id=launch.inputs.pair.pad_id, longest=launch.inputs.longest,
            autocast=launch.accelerator.autocast, instead=OTHER_ENGINE,
        )  # fmt: skip


def make_evaluator(
    launch: Launch,
    updates: Updates,
    teacher: Teacher,
    make_sampler: MakeSampler,
    params: SamplingParams,
    micro_batches: MicroBatches,
) -> Evaluator:
    """Return what evaluates on the prompts that were held out, in batches no larger than training's."""
    config, inputs, accelerator = launch.inputs.config, launch.inputs, launch.accelerator
    if not inputs.prompts.held_out:
        return NoEvaluation()
    held_out, verifier = verifier_of(inputs.prompts.held_out, launch.say)
    if verifier:
        launch.closing.callback(verifier.close)
    busiest = -(-config.batch_size // (config.num_substeps * accelerator.num_processes)) * config.group_size
    return HeldOutEvaluator(
        accelerator,
        student=updates.student,
        teacher=teacher,
        sampler=make_sampler(replace(params, choose=NucleusSampling(1.0, 1.0), group_size=1)),
        reader=make_sampler(replace(params, choose=READABLE, group_size=1)),
        prompts=held_out,
        tokenizer=inputs.pair.student.tokenizer,
        pad_id=inputs.pair.pad_id,
        micro_batch=max(1, busiest // config.grad_accum),
        micro_batches=micro_batches,
        verifier=verifier,
        doing=launch.terminal.doing,
    )


def make_schedule(config: TrainConfig, folder: RunFolder) -> Schedule:
    """Return the steps to do; a run that was stopped before an evaluation that was due begins with it."""
    first = folder.first_step
    schedule = Schedule(first, first == 0, folder.kept_here, config.steps, config.eval_every, config.save_every)
    if folder.checkpoint is None or not (first == 0 or schedule.evaluates_after(first)):
        return schedule
    done = {evaluation.step for evaluation in read_evaluations(folder.path / COMPLETIONS_FILE)}
    return replace(schedule, evaluates_first=first not in done)


def make_profiler(launch: Launch, log: RunLog) -> Profiler:
    """Return what watches the first steps, in the first process alone."""
    config, folder = launch.inputs.config, launch.folder
    if not config.profile or not launch.accelerator.is_main_process:
        return Profiler()
    left = config.steps - folder.first_step
    if config.profile >= left:
        log.warn(f"--profile {config.profile}: nothing is profiled, too few steps are left ({left}, less the first)")
        return Profiler()
    return StepProfiler(config.profile, folder.path / "profile", log.say)
