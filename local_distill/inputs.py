"""Everything that a run is given, opened and checked before any weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

from accelerate import Accelerator, PartialState
from transformers import GenerationConfig

from local_distill.backends import sampler_of, teacher_of
from local_distill.config.resumed import as_begun
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.head.sampling import NucleusSampling
from local_distill.losses.loss import Loss
from local_distill.losses.registry import make_loss
from local_distill.losses.sampler_mismatch import SamplerMismatch
from local_distill.models.adapters import Adapter, LoraSettings, frozen_experts_note, open_adapter
from local_distill.models.files import open_model
from local_distill.models.pair import ModelPair, pair_of
from local_distill.models.quantization import check_dense
from local_distill.models.tokenization import unsampled_tokens_note
from local_distill.monitor.terminal import Terminal
from local_distill.monitor.trackers.choosing import check_wandb, tracker_names
from local_distill.process.distributed import on_every_process, on_main_process
from local_distill.process.launch import Precision, resolve_precision
from local_distill.prompts import PromptSource, RawPrompts, Renderer, open_prompts, prompts_are_here
from local_distill.rollouts.student_checks import check_positions
from local_distill.runs.folder import RunFolder
from local_distill.training.optimizer import learning_rate_at


@dataclass(frozen=True)
class Inputs:
    """A run is made of these, and of weights."""

    config: TrainConfig
    precision: Precision
    pair: ModelPair
    prompts: PromptSource
    lora: Adapter | None
    trackers: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Return the tokens of the longest prompt that there is and the longest completion together."""
        return self.prompts.longest + self.config.max_new_tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of the models; some may be empty."""
        student = self.pair.student
        unsampled = unsampled_tokens_note(student.tokenizer, self.pair.vocab_size)
        experts = frozen_experts_note(self.lora.put_shapes_on(student.skeleton())) if self.lora else ""
        return self.precision.note, *student.notes, unsampled, self.pair.stops.note, experts

    @cached_property
    def saved_generation(self) -> GenerationConfig:
        """Return what is saved with the student, which stops on all the tokens that it was trained to stop on."""
        generation = copy.deepcopy(self.pair.student.generation)
        generation.eos_token_id = list(self.pair.stops.ids)
        own = self.pair.student.tokenizer.pad_token_id
        generation.pad_token_id = own if own is not None and own < self.pair.rows else self.pair.pad_id
        return generation

    @cached_property
    def fixed_settings(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one it goes on with."""
        return {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.metadata["fixed"]}


@dataclass(frozen=True)
class Launch:
    """A run that may begin: everything is checked, its folder is its own, nothing is loaded yet.

    closing: what is closed when the loop has ended, the last first.
    """

    inputs: Inputs
    accelerator: Accelerator
    folder: RunFolder
    terminal: Terminal
    closing: ExitStack

    def say(self, text: str) -> None:
        """Tell the user."""
        self.terminal.say(text)


def check_inputs(config: TrainConfig) -> Inputs:
    """Open everything but the weights. Collective: raises UserError for what is wrong on any process."""
    # Midnight may come between two processes.
    config = on_main_process(PartialState(), lambda: as_begun(config))
    return on_every_process(lambda: open_inputs(config))


def open_inputs(config: TrainConfig) -> Inputs:
    """Open everything but the weights, on this process. Raises UserError at the first thing that is wrong."""
    precision = resolve_precision(config.dtype)
    teacher_backend, sampler = teacher_of(config), sampler_of(config)
    for backend in (teacher_backend, sampler):
        if backend.check_machine:
            backend.check_machine(config)
    trackers = tracker_names(config.wandb_project, config.trackers, config.wandb_mode)
    if "wandb" in trackers:
        check_wandb(config.wandb_mode)
    # What lies here is looked at before a model's files are asked for, which may have to be downloaded.
    here = open_prompts(config) if prompts_are_here(config) else None
    student = open_model("--student_model", config.student_model, config.trust_remote_code)
    check_dense(student.flag, student.path, student.config, "to be trained")
    teacher = None
    if teacher_backend.memory.held:
        teacher = open_model("--teacher_model", config.teacher_model, config.trust_remote_code)
        if teacher_backend.check_files:
            teacher_backend.check_files(config, teacher)
    pair = pair_of(student, teacher, config.stop_tokens)
    prompts = _prompts(config, pair, here or open_prompts(config))
    if config.loss_top_k is not None and config.loss_top_k >= pair.vocab_size:
        raise UserError(
            f"--top_k: {config.loss_top_k} given, the vocabulary has {pair.vocab_size} tokens; lower it or drop it"
        )
    lora = open_lora(config)
    if sampler.check_student:
        sampler.check_student(config, pair, lora)
    for files in (pair.student, pair.teacher):
        check_positions(files, prompts.longest, config.max_new_tokens)
    return Inputs(config, precision, pair, prompts, lora, tuple(trackers))


def _prompts(config: TrainConfig, pair: ModelPair, raw: RawPrompts) -> PromptSource:
    return PromptSource.build(
        raw,
        Renderer.of(pair, config),
        seed=config.seed,
        batch_size=config.batch_size,
        steps=config.steps,
        eval_prompts=config.eval_prompts,
        max_prompt_tokens=config.max_prompt_tokens,
        max_new_tokens=config.max_new_tokens,
        context_length=pair.context_length,
    )


def open_lora(config: TrainConfig) -> Adapter | None:
    """Return the student's adapter: a new one, one that was trained before, or none."""
    if not config.use_lora:
        return None
    if config.init_adapter:
        return open_adapter(config.init_adapter)
    return LoraSettings(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_target_modules)


def loss_of(config: TrainConfig) -> Loss:
    """Return the loss of the settings; our own sampling loop's mismatch is measured where that costs nothing."""
    choose = NucleusSampling(config.temperature, config.top_p)
    own_loop = sampler_of(config).memory.own_loop
    return make_loss(
        config.loss_name,
        kl_coef=config.kl_coef,
        kl_discount=config.kl_discount,
        ratio_cap=config.ratio_cap,
        ppo_clip=config.ppo_clip,
        jsd_beta=config.jsd_beta,
        top_k=config.loss_top_k,
        top_k_support=config.top_k_support,
        mismatch=SamplerMismatch(choose.logprobs_of) if choose.exact or not own_loop else None,
        stale=config.overlap,
    )


def learning_rates(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate of each 0-based step of a run to ``steps``."""
    return partial(
        learning_rate_at,
        peak=config.learning_rate or 0.0,
        total=config.schedule_steps or steps,
        warmup=config.warmup_steps,
        scheduler=config.lr_scheduler,
    )
