"""The parts of a run, put together from its inputs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from local_distill.batch import Teacher
from local_distill.config.train_config import TrainConfig
from local_distill.engines import Ahead, MakeEngine, Site, Student, open_engine, open_teacher
from local_distill.eval.held_out import HeldOutEvaluator, NoEvaluation
from local_distill.eval.held_out_answers import verifier_of
from local_distill.inputs import Inputs, loss_of
from local_distill.loop import Evaluator, Schedule, distil
from local_distill.losses.registry import Loss
from local_distill.losses.sampler_mismatch import WRONG_ENGINE, GapWatch, rounding_of
from local_distill.models.adapters import load_lora
from local_distill.models.files import recompute_activations
from local_distill.models.reach import freeze_unreached, has_experts
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_quiet, check_scorer
from local_distill.monitor.log import RunLog
from local_distill.monitor.profiler import NoProfiler, Profiler, StepProfiler
from local_distill.plan.fitting import micro_batch_tokens
from local_distill.process.distributed import any_process, most_anywhere, on_every_process
from local_distill.process.interruption import StopRequest
from local_distill.rollouts.checking import OTHER_ENGINE, check_sampling
from local_distill.rollouts.sampling import NucleusSampling
from local_distill.runs.folder import RunFolder
from local_distill.runs.layout import COMPLETIONS_FILE
from local_distill.runs.records import read_evaluations
from local_distill.training.batching import MicroBatches, split_substeps
from local_distill.training.checkpoint import Checkpointer, moments_of
from local_distill.training.learner import Learner
from local_distill.training.optimizer import Updates, learning_rate_at, make_updates
from local_distill.training.out_of_memory import HalveMicroBatches

READABLE = NucleusSampling(temperature=0.7, top_p=0.9)  # as models are used; greedy decoding of a weak one only loops


def build_and_run(site: Site, ahead: Ahead, run: RunFolder, log: RunLog) -> tuple[int, signal.Signals | None]:
    """Load the models, put the parts together, run the loop. Returns the steps done, and what stopped it or None."""
    inputs, config, accelerator = site.inputs, site.config, site.accelerator
    model = on_every_process(lambda: load_student(inputs, run)).to(accelerator.device)
    freeze_unreached(model)
    scorer = TokenScorer(model, inputs.pair.vocab_size)
    on_every_process(lambda: try_student(site, scorer))
    scorer.needs_mask = any_process(accelerator, scorer.needs_mask)
    loss = loss_of(config)
    teacher, judge = on_every_process(lambda: open_teacher(site, scorer, loss, ahead))
    updates = make_updates(accelerator, scorer, config.weight_decay, config.max_grad_norm)
    if run.checkpoint:
        updates.load_optimizer_state(on_every_process(partial(moments_of, run.checkpoint)))
    engine, samplers = open_engine(site, Student(model, updates, run.path), ahead)
    micro_batches = make_micro_batches(site, scorer, updates)
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
    stop = StopRequest()  # before the loop there is nothing to save, and a signal ends the command at once
    site.closing.callback(stop.restore)
    done = distil(
        accelerator,
        prompts=inputs.prompts,
        engine=engine,
        collate=collate,
        teacher=teacher,
        learner=make_learner(config, accelerator, updates, loss, HalveMicroBatches(micro_batches, log.say)),
        evaluator=make_evaluator(site, updates, judge, samplers, micro_batches),
        saver=make_checkpointer(inputs, accelerator, updates, model, run),
        log=log,
        schedule=make_schedule(config, run),
        stop=stop,
        profiler=make_profiler(config, accelerator, run, log),
    )
    return done, stop.signal


def try_student(site: Site, scorer: TokenScorer) -> None:
    """Raise UserError for a student that would not be sampled, scored and trained as one and the same."""
    flag = "--student_model"
    check_scorer(scorer, flag)
    check_quiet(scorer, flag)
    if site.config.rollouts_kind == "hf":
        check_sampling(
            scorer, flag, pad_id=site.inputs.pair.pad_id, longest=site.longest, autocast=site.accelerator.autocast,
            instead=OTHER_ENGINE,
        )  # fmt: skip


def gap_watch(inputs: Inputs, say: Callable[[str], None]) -> GapWatch:
    """Who looks at what samples were drawn with, and stops the run unless updates or dropout lie in between."""
    config, dropout = inputs.config, inputs.lora.dropout if inputs.lora else 0.0
    if dropout or config.overlap or config.num_substeps > 1:
        return GapWatch(say)
    if config.rollouts_kind == "hf":
        most = rounding_of(inputs.precision.dtype, has_experts(inputs.pair.student.config))
        return GapWatch(say, most, OTHER_ENGINE)
    return GapWatch(say, WRONG_ENGINE, "look at the engine's weights and settings, or use --rollouts hf")


def make_micro_batches(site: Site, scorer: TokenScorer, updates: Updates) -> MicroBatches:
    """How rollouts are cut; with all models in their places, for what is left of the memory is looked at."""
    most = site.config.microbatch_tokens
    if most is None:
        most = micro_batch_tokens(site.inputs, site.accelerator, scorer, updates.to_come(), site.say)
    return MicroBatches(most, partial(most_anywhere, site.accelerator))


def load_student(inputs: Inputs, run: RunFolder) -> nn.Module:
    """The model to train, from the checkpoint where there is one: fp32 masters, or a frozen base and an adapter."""
    config, files = inputs.config, inputs.pair.student
    model: nn.Module
    if inputs.lora:
        base = files.load(inputs.precision.dtype)
        model = load_lora(base, run.checkpoint.path) if run.checkpoint else inputs.lora.put_on(base, config.seed)
    else:
        model = (files.with_weights_of(run.checkpoint.path) if run.checkpoint else files).load(torch.float32)
    if config.gradient_checkpointing:
        recompute_activations(model)
    return model


def learning_rates(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """The rate of each 0-based step of a run to ``steps``."""
    return partial(
        learning_rate_at,
        peak=config.learning_rate or 0.0,
        total=config.schedule_steps or steps,
        warmup=config.warmup_steps,
        scheduler=config.lr_scheduler,
    )


def make_learner(
    config: TrainConfig, accelerator: Accelerator, updates: Updates, loss: Loss, halve: HalveMicroBatches
) -> Learner:
    """The update rule that the settings ask for."""
    rate = learning_rates(config, config.steps)
    return Learner(accelerator, updates, loss, rate, config.seed, halve)


def make_evaluator(
    site: Site, updates: Updates, teacher: Teacher, samplers: MakeEngine, micro_batches: MicroBatches
) -> Evaluator:
    """Evaluation on the prompts that were held out, in batches no larger than training's."""
    config, inputs, accelerator = site.config, site.inputs, site.accelerator
    if not inputs.prompts.held_out:
        return NoEvaluation()
    held_out, verifier = verifier_of(inputs.prompts.held_out, site.say)
    if verifier:
        site.closing.callback(verifier.close)
    busiest = -(-config.batch_size // (config.num_substeps * accelerator.num_processes)) * config.group_size
    return HeldOutEvaluator(
        accelerator,
        student=updates.student,
        teacher=teacher,
        sampler=samplers(choose=NucleusSampling(1.0, 1.0), group_size=1),
        reader=samplers(choose=READABLE, group_size=1),
        prompts=held_out,
        tokenizer=inputs.pair.student.tokenizer,
        pad_id=inputs.pair.pad_id,
        micro_batch=max(1, busiest // config.grad_accum),
        micro_batches=micro_batches,
        verifier=verifier,
    )


def make_checkpointer(
    inputs: Inputs, accelerator: Accelerator, updates: Updates, model: nn.Module, run: RunFolder
) -> Checkpointer:
    """Where the student is kept."""
    return Checkpointer(
        accelerator,
        updates,
        model,
        tokenizer=inputs.pair.student.tokenizer,
        generation=inputs.saved_generation,
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
