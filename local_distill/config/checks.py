"""What settings may be, each alone and together: everything that can be said without opening a file."""

from __future__ import annotations

from local_distill.config.lookup import LOSSES, SAMPLERS, SOURCES, TEACHERS, Rules
from local_distill.config.ranges import check_ranges, refuse_empty
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError

_NAMED_RUNS = ("wandb", "trackio", "swanlab")
"""Trackers whose runs have a name."""
_MAY_BE_EMPTY = ("teacher_model", "system_prompt", "wandb_name", "trackers")


def check_settings(config: TrainFields) -> None:
    """Raise UserError for the first setting that is out of its range, or contradicts another."""
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
    if config.num_substeps > config.batch_size:
        raise UserError(
            f"--num_substeps: {config.num_substeps} given with --batch_size {config.batch_size}; "
            "each substep needs a prompt of its own, lower it"
        )


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
