"""From answers to the settings of a run that fits a machine, and the commands that begin it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE
from local_distill.errors import UserError
from local_distill.first_run.answers import Answers, name_of
from local_distill.first_run.models import shortest_context, thinks_unless_told
from local_distill.first_run.run_file import heading, render
from local_distill.models.footprint import billions
from local_distill.packages import installed
from local_distill.plan.display import verdict
from local_distill.plan.machine import GIB, Machine
from local_distill.plan.settling import NothingFits, Settled, settle
from local_distill.prompts.rendering import ENOUGH_FOR_ANSWERS, THINKING

PROMPT_TOKENS = 1024
SPARE = 0.05
"""Share of the memory that is left to a screen, other programs, and what no plan sees."""
RATES = ((3e8, 1e-4), (7e9, FULL_LEARNING_RATE), (float("inf"), 5e-6))
"""Learning rates of all weights, for models of fewer parameters than these."""
DS_CONFIG = Path(__file__).resolve().parent.parent / "ds_zero2_bf16.json"


@dataclass(frozen=True)
class FirstRun:
    """A first run is a file's text, what is said of it, and the commands that come next, each with its purpose.

    missing: packages that its settings need and that are not here, as pip is asked for them.
    """

    text: str
    words: str
    verdict: str
    left: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


def first_run(answers: Answers, machine: Machine, file: Path, tell: Callable[[str], None]) -> FirstRun:
    """Make the run that was asked for fit ``machine``. Raises UserError where nothing does, with what would help.

    file: where its settings will be. tell: is told what is tried now.
    """
    roomy = replace(machine, memory=(1 - SPARE) * machine.memory, words=f"{machine.words}, {SPARE:.0%} of it left free")
    wanted, usual = _lengths(answers, machine)
    settings = {**answers.settings, **usual, "max_new_tokens": wanted}
    held = "teacher_model" in settings
    thinks = thinks_unless_told(settings["student_model"])
    if thinks and wanted < ENOUGH_FOR_ANSWERS:
        settings["chat_template_kwargs"] = f'{{"{THINKING}": false}}'
    found = settle(settings, roomy, held, tell)
    if isinstance(found, NothingFits):
        raise UserError(_what_would_help(found, settings, roomy))
    whole = {"use_lora": False, "gradient_checkpointing": False, **found.settings, "output_dir": answers.output_dir}
    whole["learning_rate"] = _learning_rate(found, bool(whole["use_lora"]))
    if whole["use_lora"] and "init_adapter" not in whole:
        whole["lora_r"] = TrainConfig.lora_r
    if thinks and "chat_template_kwargs" in whole:
        whole["chat_template_kwargs"] = {THINKING: False}
    commands = _commands(file, answers.output_dir, machine, found.way.zero_stage)
    said = verdict(found.plan)
    student = name_of(settings["student_model"])
    head = heading(student, answers.teacher, roomy.words, said, [command for command, _ in commands[:2]])
    text = render(whole, head, answers.tokens or wanted, thinks)
    words = f"{student} learns from {answers.teacher}: {found.way.words}"
    return FirstRun(text, words, said, found.left, commands, _missing(whole, found.way.zero_stage))


def _lengths(answers: Answers, machine: Machine) -> tuple[int, dict[str, Any]]:
    """Return the longest completion, and the usual sizes of a run: small ones on a processor."""
    on_gpu = machine.device == "cuda"
    context = shortest_context(answers.settings)
    wanted = answers.tokens or (512 if on_gpu else 128)
    prompt = PROMPT_TOKENS if on_gpu else PROMPT_TOKENS // 4
    if context:
        wanted = wanted if answers.tokens else min(wanted, context // 2)
        prompt = max(1, min(prompt, context - wanted))
    several = machine.processes > 1
    sizes = {"batch_size": 64 if several else 32, "group_size": 4, "steps": 100, "eval_every": 20, "save_every": 50}
    if not on_gpu:
        sizes |= {"batch_size": 8, "group_size": 2, "steps": 30, "eval_every": 10, "save_every": 15}
    sizes["batch_size"] = max(sizes["batch_size"], 8 * machine.processes)
    return wanted, {"max_prompt_tokens": prompt, **sizes}


def _learning_rate(found: Settled, adapter: bool) -> float:
    if adapter:
        return LORA_LEARNING_RATE
    parameters = found.plan.memory.student.shape.parameters
    return next(rate for below, rate in RATES if parameters < below)


def _what_would_help(found: NothingFits, settings: Mapping[str, Any], machine: Machine) -> str:
    plan = found.plan
    tried = "an adapter, with activations recomputed"
    if machine.device == "cuda" and "teacher_model" in settings:
        tried += ", the teacher sharded" if machine.processes > 1 else ", the teacher in 4 bits or offloaded"
    helps = [f"a teacher of at most {billions(found.teacher)}"] if found.teacher else ["a smaller student"]
    if "teacher_model" in settings:
        helps.append("a teacher that is served elsewhere (--teacher_model http://host:port)")
    helps.append("more or larger GPUs (--gpus, --gpu_memory plan for them)")
    return (
        f"--student_model {settings['student_model']}: nothing that was tried fits {machine.words}, not even {tried}, "
        f"and completions of {plan.run.config.max_new_tokens} tokens: {plan.fullest.name} needs "
        f"{plan.fullest.bytes / GIB:.1f} of {plan.available / GIB:.1f} GiB; what would help: {'; '.join(helps)}"
    )


def _commands(file: Path, output_dir: str, machine: Machine, zero_stage: int) -> tuple[tuple[str, str], ...]:
    """Return what to type next, and what for."""
    run, folder = shlex.quote(str(file)), shlex.quote(output_dir)
    train = f"local-distill train {run}"
    if machine.processes > 1:
        kind = f"--use_deepspeed --deepspeed_config_file {DS_CONFIG}" if zero_stage else "--multi_gpu"
        train = f"accelerate launch {kind} --num_processes {machine.processes} -m local_distill train {run}"
    return (
        (f"local-distill train {run} --dry_run", "checks everything that can be checked without weights"),
        (train, "trains"),
        (f"local-distill watch {folder} --open", "its page in the browser, which follows it; in a second terminal"),
    )


def _missing(settings: Mapping[str, Any], zero_stage: int) -> tuple[str, ...]:
    needed = {"deepspeed": zero_stage or settings.get("teacher_ds_zero3"),
              "bitsandbytes": settings.get("teacher_quantization", "none") != "none"}  # fmt: skip
    extras = {"deepspeed": "deepspeed", "bitsandbytes": "quantization"}
    return tuple(f"local-distill[{extras[name]}]" for name, is_needed in needed.items()
                 if is_needed and not installed(name))  # fmt: skip
