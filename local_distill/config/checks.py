"""What settings may be, each alone and together: everything that can be said without opening a file."""

from __future__ import annotations

import math
from collections.abc import Callable

from local_distill.config.registry import LOSSES, SAMPLERS, TEACHERS
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError

LARGEST = 2**31 - 1
"""Of whole numbers, so that their products still fit the machine."""
LOWEST_TEMPERATURE = 1e-3
"""Below it, logits divided by the temperature leave what float32 can hold."""

_AT_LEAST_ONE = (
    "batch_size", "group_size", "max_new_tokens", "max_prompt_tokens", "sampling_batch_size",
    "steps", "grad_accum", "num_substeps", "lora_r", "keep_checkpoints", "server_concurrency",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "kl_coef", "weight_decay", "warmup_steps", "max_grad_norm", "save_every", "eval_every", "profile",
    "server_patience",
)  # fmt: skip
_NAMED_RUNS = ("wandb", "trackio", "swanlab")
"""Trackers whose runs have a name."""
_MAY_BE_EMPTY = ("teacher_model", "system_prompt", "wandb_name", "trackers")


def check_settings(config: TrainFields) -> None:
    """Raise UserError for the first setting that is out of its range, or contradicts another."""
    for check in (_check_ranges, _check_combinations, _check_backends, _check_adapter, _check_loss):
        check(config)


def _check_ranges(config: TrainFields) -> None:
    if not config.student_model:
        raise UserError("--student_model: not given, needs a hub id or a local folder")
    for name, value in vars(config).items():
        if value == "" and name not in _MAY_BE_EMPTY:  # as from a shell variable that is not set
            raise UserError(f"--{name}: empty text given; give a value, or leave the flag out")
    for name in _AT_LEAST_ONE:
        require(name, getattr(config, name), lambda v: v >= 1, "at least 1")
    for name in _AT_LEAST_ZERO:
        require(name, getattr(config, name), lambda v: v >= 0, "0 or more")
    require("seed", config.seed, lambda v: v >= 0, "0 or more", most=2**63 - 1)
    for name in ("lora_alpha", "ratio_cap", "server_timeout"):
        require(name, getattr(config, name), lambda v: v > 0, "above 0")
    needed = f"at least {LOWEST_TEMPERATURE:g}; 0.01 is nearly greedy"
    require("temperature", config.temperature, lambda v: v >= LOWEST_TEMPERATURE, needed)
    require("learning_rate", config.learning_rate or 0.0, lambda v: 0 < v <= 1, "above 0 and at most 1")
    for name in ("top_p", "rollouts_memory_share"):
        require(name, getattr(config, name), lambda v: 0 < v <= 1, "above 0 and at most 1")
    require("kl_discount", config.kl_discount, lambda v: 0 <= v <= 1, "between 0 and 1")
    require("lora_dropout", config.lora_dropout, lambda v: 0 <= v < 1, "at least 0 and below 1")
    require("ppo_clip", config.ppo_clip, lambda v: 0 < v < 1, "above 0 and below 1")
    require("jsd_beta", config.jsd_beta, lambda v: 0 < v < 1, "above 0 and below 1")
    for name in ("top_k", "microbatch_tokens", "schedule_steps"):
        if getattr(config, name) is not None:
            require(name, getattr(config, name), lambda v: v >= 1, "at least 1")
    if config.eval_prompts is not None:
        require("eval_prompts", config.eval_prompts, lambda v: v >= 0, "0 or more")


def _check_combinations(config: TrainFields) -> None:
    if config.dataset and config.prompts_file:
        raise UserError("--dataset and --prompts_file: both given; prompts come from one source, drop one of them")
    if config.dataset_path and not config.dataset:
        raise UserError(
            "--dataset_path: given without --dataset; name the set that it is a copy of (deepmath or tulu3), or give "
            "the path as --dataset with --prompt_column"
        )
    if config.prompt_column and not config.dataset:
        raise UserError("--prompt_column: given without --dataset, whose column it names; add it, or drop the column")
    if config.system_prompt is not None and config.chat_template == "off":
        raise UserError("--system_prompt: needs the chat template, which --chat_template off turns off; drop one")
    if config.chat_template_kwargs and config.chat_template == "off":
        raise UserError(
            "--chat_template_kwargs: needs the chat template, which --chat_template off turns off; drop one"
        )
    if config.wandb_name and not (config.wandb_project or any(t in (config.trackers or "") for t in _NAMED_RUNS)):
        raise UserError(
            "--wandb_name: given without --wandb_project, so nothing is logged there; add it, or drop the name"
        )
    if config.profile and config.profile >= config.steps:
        raise UserError(
            f"--profile: {config.profile} steps after the first given with --steps {config.steps}; lower it, or run "
            "more steps"
        )
    if config.num_substeps > config.batch_size:
        raise UserError(
            f"--num_substeps: {config.num_substeps} given with --batch_size {config.batch_size}; "
            "each substep needs a prompt of its own, lower it"
        )


def _check_adapter(config: TrainFields) -> None:
    if config.init_adapter and not config.use_lora:
        raise UserError("--init_adapter: given without --use_lora, which it belongs to; add it, or drop the adapter")


def _check_backends(config: TrainFields) -> None:
    """Ask the teacher and the sampler; what is for another teacher or sampler than the one that was chosen is wrong."""
    TEACHERS.get(config.teacher_kind).check(config)
    SAMPLERS.get(config.rollouts_kind).check(config)


def _check_loss(config: TrainFields) -> None:
    if config.loss == "auto":
        for name, needed in (("ratio_cap", "importance_sampling"), ("ppo_clip", "ppo"), ("jsd_beta", "jsd")):
            if getattr(config, name) != getattr(TrainFields, name):
                raise UserError(f"--{name}: given with --loss auto, which takes no such loss; add --loss {needed}")
    loss = LOSSES.get(config.loss_name)
    loss.check(config)
    if loss.needs(config) > config.teacher_gives:
        where = TEACHERS.get(config.teacher_kind).where
        raise UserError(
            f"--loss {config.loss}: a teacher {where} cannot hand over its whole distribution; add --top_k 64 with "
            "the teacher's support, use policy_gradient, or a teacher that each process holds whole"
        )


def require(name: str, value: float, holds: Callable[[float], bool], needed: str, most: int = LARGEST) -> None:
    """Raise UserError unless the number given as --``name`` is finite, not above ``most``, and as ``holds`` says."""
    if isinstance(value, float):
        given, fits = f"{value:g}", math.isfinite(value)
        needed = needed if fits else f"a finite number, {needed}"
    else:
        given, fits = str(value), value <= most
        needed = needed if fits else f"at most {most}"
        given = given if len(given) <= 20 else f"a number of {len(given)} digits"
    if not (fits and holds(value)):
        raise UserError(f"--{name}: {given} given, needs to be {needed}")
