"""The settings of a run: complete, checked, and read from a command line or YAML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from local_distill.batch import TeacherView
from local_distill.config.lookup import LOSSES, SAMPLERS, SOURCES, TEACHERS, Rules
from local_distill.config.parsing import option, parse
from local_distill.config.ranges import check_ranges, refuse_empty
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE, TrainFields
from local_distill.errors import UserError

USAGE = """\
python -m local_distill.train_on_policy_local
         --student_model MODEL --teacher_model MODEL [settings]

examples:
  python -m local_distill.train_on_policy_local \\
      --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B \\
      --chat_template_kwargs '{"enable_thinking": false}'
  python -m local_distill.train_on_policy_local run.yaml --steps 200
  python -m local_distill.train_on_policy_local run.yaml --dry_run
  accelerate launch \\
      --config_file local_distill/accelerate_config_multi_gpu.yaml \\
      -m local_distill.train_on_policy_local run.yaml
"""
PROG = "local_distill.train_on_policy_local"
DESCRIPTION = "On-policy distillation of a student model from a teacher model."
_NAMED_RUNS = ("wandb", "trackio", "swanlab")
"""Trackers whose runs have a name."""
_MAY_BE_EMPTY = ("teacher_model", "system_prompt", "wandb_name", "trackers")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainFields):
    """One run is set up by these. Raises UserError when they contradict each other.

    yaml_by_place: see ``parsing.FILE_BY_PLACE``.
    """

    yaml_by_place = True

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            rate = LORA_LEARNING_RATE if self.use_lora else FULL_LEARNING_RATE
            object.__setattr__(self, "learning_rate", rate)
        _check(self)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainConfig):
    """``train`` is asked for a run, or to look at one; the run itself knows nothing of that."""

    dry_run: bool = option(
        "before a run",
        "Check all that needs no weights, print three prompts as the models read them, the memory and the schedule, "
        "and end: nothing is loaded, nothing is written. The exit code is 0, or 2 after the first mistake.",
        False,
    )

    @property
    def config(self) -> TrainConfig:
        """Return the settings of the run."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Return the settings of a run. Raises UserError for anything that is unknown or of the wrong kind."""
    return parse_settings(argv).config


def parse_settings(argv: Sequence[str], first: Callable[[dict[str, Any]], None] | None = None) -> TrainSettings:
    """Return the settings of the documented command. first, and what is raised: see ``parse``."""
    return parse(TrainSettings, argv, prog=PROG, usage=USAGE, description=DESCRIPTION, first=first)


def _check(config: TrainFields) -> None:
    """Refuse the first setting that is out of its range, or contradicts another: without opening a file."""
    if not config.student_model:
        raise UserError("--student_model: not given, needs a hub id or a local folder")
    refuse_empty(config, _MAY_BE_EMPTY)
    check_ranges(config)
    _check_combinations(config)
    # What is for another source, teacher or sampler than the one that was chosen is wrong.
    records: tuple[Rules, ...] = (
        SOURCES.get(config.prompts_kind), TEACHERS.get(config.teacher_kind), SAMPLERS.get(config.rollouts_kind),
    )  # fmt: skip
    for record in records:
        if record.check:
            record.check(config)
    if config.init_adapter and not config.use_lora:
        raise UserError("--init_adapter: given without --use_lora, which it belongs to; add it, or drop the adapter")
    _check_loss(config)
    _check_teacher_share(config)


def _check_combinations(config: TrainFields) -> None:
    if config.dataset and config.prompts_file:
        raise UserError("--dataset and --prompts_file: both given; prompts come from one source, drop one of them")
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
    if config.start_new_tokens is not None:
        if config.start_new_tokens > config.max_new_tokens:
            raise UserError(
                f"--start_new_tokens: {config.start_new_tokens} given with --max_new_tokens {config.max_new_tokens}, "
                "to which it grows; lower it"
            )
        if config.overlap:
            raise UserError("--start_new_tokens and --overlap: both given; lengths do not grow ahead, drop one")
    if config.num_substeps > config.batch_size:
        raise UserError(
            f"--num_substeps: {config.num_substeps} given with --batch_size {config.batch_size}; "
            "each substep needs a prompt of its own, lower it"
        )


def _check_teacher_share(config: TrainFields) -> None:
    if config.teacher_share == 0:
        if config.teacher_share_steps is not None:
            raise UserError("--teacher_share_steps: given without --teacher_share, which it ends; add it, or drop this")
        return
    if not TEACHERS.get(config.teacher_kind).samples(config):
        raise UserError(
            f"--teacher_share: a teacher {TEACHERS.get(config.teacher_kind).where} is not sampled with here; use one "
            "that each process holds whole, without --teacher_offload, or drop the share"
        )
    if LOSSES.get(config.loss_name).needs(config) == TeacherView.tokens:
        raise UserError(
            f"--teacher_share: --loss {config.loss_name} takes the samples for the student's own; use reverse_kl, "
            "forward_kl or jsd, which compare distributions"
        )
    if config.overlap:
        raise UserError("--teacher_share and --overlap: both given; the teacher does not sample ahead, drop one")


def _check_loss(config: TrainFields) -> None:
    if config.loss == "auto":
        for name, needed in (("ratio_cap", "importance_sampling"), ("ppo_clip", "ppo"), ("jsd_beta", "jsd")):
            if getattr(config, name) != getattr(TrainFields, name):
                raise UserError(f"--{name}: given with --loss auto, which takes no such loss; add --loss {needed}")
    loss = LOSSES.get(config.loss_name)
    if loss.check:
        loss.check(config)
    if loss.needs(config) > config.teacher_gives:
        where = TEACHERS.get(config.teacher_kind).where
        raise UserError(
            f"--loss {config.loss}: a teacher {where} cannot hand over its whole distribution; add --top_k 64 with "
            "the teacher's support, use policy_gradient, or a teacher that each process holds whole"
        )
