"""DeepSpeed ZeRO-3 shards a teacher over all processes, for inference only.

Each process holds 1/n of every weight and borrows the rest layer by layer, so that a 32 B teacher in
bf16 takes 64 GB / n of each GPU. Every forward is collective: all processes must make the same number
of calls, which is what the fixed number of micro-batches is for.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from local_distill.backends import Opening, OpenTeacher, TeacherBackend, TeacherReaders
from local_distill.batch import TeacherView
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.models.files import ModelFiles
from local_distill.models.footprint import Held, Place, Shape, TeacherMemory
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import can_share_prompts, check_scorer
from local_distill.process.distributed import any_process, runs_on_cuda
from local_distill.process.launch import check_deepspeed
from local_distill.runs.evaluations import SHOWN_TOP
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, freeze
from local_distill.teachers.teacher_checks import check_named, check_own, check_packing

FLAG = "--teacher_ds_zero3"
LIVE_PARAMETERS = 1e9
"""ZeRO-3's stage3_max_live_parameters, most that are gathered at a time, unless its settings have another."""


def zero3_config(path: str | None) -> dict[str, Any]:
    """Return the DeepSpeed settings of a sharded teacher: the user's file, or the built-in ones.

    Raises UserError when the file cannot be read or does not ask for stage 3.
    """
    if path is None:
        return {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100_000}}
    where = f"--teacher_ds_config {path}"
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a readable JSON file ({error}); give a DeepSpeed configuration") from error
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage != 3:
        raise UserError(f"{where}: zero_optimization.stage is {stage}, needs to be 3, which shards weights; set it")
    if "optimizer" in settings or "scheduler" in settings:
        raise UserError(f"{where}: has an optimizer or scheduler; a teacher is not trained, drop it")
    whole: dict[str, Any] = settings
    return whole


def held(config: TrainConfig, shape: Shape, place: Place) -> Held:
    """Count a share of the teacher, and what is gathered of it; the head is whole as long as it scores."""
    live = zero3_config(config.teacher_ds_config)["zero_optimization"].get("stage3_max_live_parameters")
    most = min(float(live) if isinstance(live, int | float) else LIVE_PARAMETERS, shape.parameters - shape.head)
    gathered = most + shape.head if place.processes > 1 else 0.0
    return Held("zero3", shape, place.item * shape.parameters / place.processes, place.item * gathered)


@contextmanager
def _in_a_group() -> Iterator[None]:
    """Make a group of one process where there is no launcher, and DeepSpeed would look for MPI.

    It is there until the run has ended well, when accelerate leaves it; else as long as the process.
    """
    launched = "LOCAL_RANK" in os.environ
    if not torch.distributed.is_initialized():
        backend = "nccl" if runs_on_cuda() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(_leave_group)
    # DeepSpeed reads its device from it; accelerate would take it for a launch.
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if not launched:
            del os.environ["LOCAL_RANK"]


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@_in_a_group()
def load_zero3_teacher(opening: Opening) -> tuple[nn.Module, TokenScorer]:
    """Load the teacher straight into shares; no process ever holds it whole. Collective.

    Returns what wraps its TokenScorer, frozen, with that: every forward is collective too.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    files, dtype = opening.pair.teacher, opening.dtype
    deepspeed.init_distributed()
    settings = {
        **zero3_config(opening.config.teacher_ds_config),
        "train_micro_batch_size_per_gpu": 1,  # the engine insists on a number; inference does not use it
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    sharded_loading = HfDeepSpeedConfig(settings)  # while it lives, from_pretrained shards what it reads
    model = files.load(dtype)
    del sharded_loading

    scorer = TokenScorer(model, opening.pair.vocab_size)
    output = model.get_output_embeddings()
    for parameter in (output.weight, output.bias):
        if parameter is not None:  # the scorer reads the head's weights without calling the head
            deepspeed.zero.register_external_parameter(scorer, parameter)
    sharded: nn.Module
    sharded, *_ = deepspeed.initialize(model=scorer, config=settings)
    freeze(sharded)
    check_scorer(scorer, files.flag)
    scorer.needs_mask = any_process(opening.accelerator, scorer.needs_mask)
    scorer.shares_prompts = not any_process(opening.accelerator, not can_share_prompts(scorer))
    return sharded, scorer


def check(config: TrainFields) -> None:
    """Ask for a model, and refuse what is for another kind of teacher."""
    check_named(config)
    check_own(config, "zero3", "teacher_ds_zero3", "teacher_ds_config")


def check_machine(config: TrainConfig) -> None:
    """Raise UserError without DeepSpeed, or for settings of it that cannot be read or do not shard."""
    check_deepspeed(FLAG)
    zero3_config(config.teacher_ds_config)


def check_files(_config: TrainConfig, teacher: ModelFiles) -> None:
    """Refuse a model that comes quantised."""
    check_packing(teacher, (FLAG, True, False))


def open_zero3(opening: Opening) -> OpenTeacher:
    """Load the teacher in shares; evaluation reads its likeliest tokens."""
    config, device = opening.config, opening.accelerator.device

    def load(_student: TokenScorer, needs: TeacherView) -> TeacherReaders:
        sharded, scorer = load_zero3_teacher(opening)
        top = TopTokensTeacher(sharded, device, config.loss_top_k or 0)
        training = top if needs == TeacherView.top_tokens else LocalTeacher(sharded, device)
        return TeacherReaders(training, TopTokensTeacher(sharded, device, SHOWN_TOP), scorer.shares_prompts)

    return load


BACKEND = TeacherBackend(
    check=check,
    check_machine=check_machine,
    check_files=check_files,
    gives=TeacherView.top_tokens,
    memory=TeacherMemory(held, shared=True),
    open=open_zero3,
    where=f"sharded by {FLAG}",
)
