"""From the settings of a run to what is planned."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator

from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.inputs import Inputs, open_lora
from local_distill.models.files import open_config
from local_distill.models.neutral import context_length_of
from local_distill.models.quantization import check_dense
from local_distill.plan.costs import Lengths
from local_distill.plan.machine import Machine, free_for_a_run, gpus, this_machine
from local_distill.plan.memory import Run
from local_distill.plan.plan_config import PlanSettings
from local_distill.process.launch import DTYPES, resolve_precision


def open_run(settings: PlanSettings) -> Run:
    """What ``local-distill plan`` is asked about, from configurations alone. Raises UserError."""
    machine = _machine(settings)
    dtype = _dtype(settings, machine)
    if settings.zero2 and dtype == torch.float32:
        raise UserError("--zero2: DeepSpeed shards a low-precision student; add --dtype bf16")
    student = open_config("--student_model", settings.student_model, settings.trust_remote_code)
    check_dense("--student_model", settings.student_model, student, "to be trained")
    teacher = None
    if settings.teacher_kind in ("local", "zero3"):
        teacher = open_config("--teacher_model", settings.teacher_model, settings.trust_remote_code)
    contexts = [length for config in (student, teacher) if config is not None and (length := context_length_of(config))]
    if contexts and min(contexts) - settings.max_new_tokens < 1:
        raise UserError(
            f"--max_new_tokens: {settings.max_new_tokens} given, but the context holds {min(contexts)} tokens, prompt "
            "included; lower it"
        )
    room = [length - settings.max_new_tokens for length in contexts]
    lengths = Lengths(min([settings.max_prompt_tokens, *room]), settings.max_new_tokens)
    return Run(settings, student, teacher, open_lora(settings), dtype, 2 * settings.zero2, lengths, machine)


def run_that_starts(inputs: Inputs, accelerator: Accelerator, completion: int = 1) -> Run:
    """What ``train`` is about to do, on what is free now. completion: tokens that are sampled to its longest prompt;
    one is certain."""
    config = inputs.config
    plugin = accelerator.state.deepspeed_plugin
    has_its_own = config.teacher_kind in ("local", "zero3")
    return Run(
        config,
        inputs.pair.student.config,
        inputs.pair.teacher.config if has_its_own else None,
        inputs.lora,
        inputs.precision.dtype,
        plugin.zero_stage if plugin else 0,
        Lengths(inputs.prompts.longest, completion),
        free_for_a_run(accelerator.device, accelerator.num_processes),
    )


def _machine(settings: PlanSettings) -> Machine:
    if settings.gpu_memory is not None:
        return gpus(settings.gpus or 1, settings.gpu_memory)
    here = this_machine()
    if settings.gpus is None:
        return here
    if here.device != "cuda":
        raise UserError(f"--gpus: {settings.gpus} given, there is none here; say how large they are with --gpu_memory")
    return replace(gpus(settings.gpus, here.memory / 2**30), memory=here.memory)


def _dtype(settings: TrainConfig, machine: Machine) -> torch.dtype:
    """``--dtype`` on that machine; auto is bf16 on a GPU that is not here."""
    if machine.device == "cpu":
        return resolve_precision(settings.dtype).dtype
    return DTYPES["bf16" if settings.dtype == "auto" else settings.dtype]
