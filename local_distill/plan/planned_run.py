"""A planned run is a run's settings, its models' configurations, and the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedModel

from local_distill.backends import sampler_of, teacher_of
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.inputs import Inputs, open_lora
from local_distill.models.adapters import Adapter
from local_distill.models.file_settings import context_length_of
from local_distill.models.files import open_config, skeleton_of
from local_distill.models.footprint import SamplerMemory, TeacherMemory
from local_distill.models.quantization import check_dense
from local_distill.plan.machine import Machine, free_for_a_run
from local_distill.process.launch import DTYPES, resolve_precision


@dataclass(frozen=True)
class Lengths:
    """The longest rollout has a prompt and a completion of so many tokens."""

    prompt: int
    completion: int

    @property
    def whole(self) -> int:
        """Return the tokens of both together."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class PlannedRun:
    """A planned run is all that its memory depends on.

    student, teacher: of transformers; no teacher where it is elsewhere, or the student itself. adapter: the student's.
    dtype: of the products. zero_stage: of DeepSpeed's ZeRO, which shards the student; 0 without it. lengths: of the
    longest rollout.
    """

    config: TrainConfig
    student: PretrainedConfig
    teacher: PretrainedConfig | None
    adapter: Adapter | None
    dtype: torch.dtype
    zero_stage: int
    lengths: Lengths
    machine: Machine

    @property
    def rollouts(self) -> int:
        """Return the rollouts of a step that the busiest process has."""
        return -(-self.config.batch_size // self.machine.processes) * self.config.group_size

    @property
    def teacher_memory(self) -> TeacherMemory:
        """Return what the teacher states of its memory."""
        return teacher_of(self.config).memory

    @property
    def sampler_memory(self) -> SamplerMemory:
        """Return what the sampler states of its memory."""
        return sampler_of(self.config).memory

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens that both models have."""
        return min(c.get_text_config().vocab_size for c in (self.student, self.teacher) if c is not None)

    def skeleton(self, config: PretrainedConfig) -> PreTrainedModel:
        """Build one of its models without memory."""
        return skeleton_of(config, self.config.trust_remote_code)

    def changed(self, **settings: Any) -> PlannedRun:
        """Return the same run with other settings."""
        config = replace(self.config, **settings)
        return replace(self, config=config, adapter=self.adapter or open_lora(config))


def open_run(config: TrainConfig, machine: Machine, zero_stage: int) -> PlannedRun:
    """Read the configurations of a run, and nothing else of it. Raises UserError."""
    if machine.device == "cpu":
        dtype = resolve_precision(config.dtype).dtype
    else:  # the GPU need not be here: auto is what one has
        dtype = DTYPES["bf16" if config.dtype == "auto" else config.dtype]
    if zero_stage and dtype == torch.float32:
        raise UserError("--zero2: DeepSpeed shards a low-precision student; add --dtype bf16")
    student = open_config("--student_model", config.student_model, config.trust_remote_code)
    check_dense("--student_model", config.student_model, student, "to be trained")
    teacher = None
    if teacher_of(config).memory.held:
        teacher = open_config("--teacher_model", config.teacher_model, config.trust_remote_code)
    contexts = [length for each in (student, teacher) if each is not None and (length := context_length_of(each))]
    if contexts and min(contexts) - config.max_new_tokens < 1:
        raise UserError(
            f"--max_new_tokens: {config.max_new_tokens} given, but the context holds {min(contexts)} tokens, prompt "
            "included; lower it"
        )
    prompt = min([config.max_prompt_tokens, *(length - config.max_new_tokens for length in contexts)])
    lengths = Lengths(prompt, config.max_new_tokens)
    return PlannedRun(config, student, teacher, open_lora(config), dtype, zero_stage, lengths, machine)


def run_that_starts(inputs: Inputs, accelerator: Accelerator, completion: int = 1) -> PlannedRun:
    """Return the run that ``train`` is about to begin, on what is free now.

    completion: tokens that are sampled to its longest prompt; one is certain.
    """
    config = inputs.config
    plugin = accelerator.state.deepspeed_plugin
    return PlannedRun(
        config,
        inputs.pair.student.config,
        inputs.pair.teacher.config if teacher_of(config).memory.held else None,
        inputs.lora,
        inputs.precision.dtype,
        plugin.zero_stage if plugin else 0,
        Lengths(inputs.prompts.longest, completion),
        free_for_a_run(accelerator.device, accelerator.num_processes),
    )
