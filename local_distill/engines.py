"""What samples and what scores, as the settings ask."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from local_distill.batch import Prompt, RolloutEngine, Teacher, TeacherView
from local_distill.config.parsing import comma_separated
from local_distill.eval.held_out import SHOWN_TOP
from local_distill.inputs import Launch
from local_distill.losses.loss import Loss
from local_distill.models.quantization import quantization_config
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_scorer
from local_distill.process.distributed import any_process, on_every_process, on_main_process
from local_distill.rollouts.hf import HFRollouts
from local_distill.rollouts.overlap import OverlappedRollouts
from local_distill.rollouts.sampling import NucleusSampling
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher, WholeScorer
from local_distill.teachers.offload import offloaded
from local_distill.teachers.student_base import BaseOfStudent
from local_distill.teachers.zero3 import load_zero3_teacher
from local_distill.training.batching import share_of_process
from local_distill.training.optimizer import Updates

if TYPE_CHECKING:
    from local_distill.serving.client import HttpClient

SERVED = "served"
"""Folder of a run in which weights are handed to the servers that sample."""

MakeEngine = Callable[..., Any]
"""A RolloutEngine, once it is told how to ``choose`` and the ``group_size``."""


@dataclass
class Student:
    """The model that is trained, unwrapped; what updates it; and the folder of its run."""

    model: nn.Module
    updates: Updates
    folder: Path


class EngineInside:
    """vLLM in this process. It starts before the models are loaded, for it looks for free memory."""

    def __init__(self, launch: Launch) -> None:
        from local_distill.rollouts.vllm_colocated import SharedEngine, merged_weights

        self.student: Student | None = None
        dtype = launch.inputs.precision.dtype
        self.engine = SharedEngine(
            launch.inputs.config.student_model,
            weights=lambda: merged_weights(self._student.model, dtype),
            version=lambda: self._student.updates.version,
            dtype=dtype,
            max_tokens=launch.inputs.longest,
            memory_share=launch.inputs.config.rollouts_memory_share,
            seed=launch.inputs.config.seed,
            trust_remote_code=launch.inputs.config.trust_remote_code,
            eager=launch.accelerator.device.type == "cpu",
        )

    @property
    def _student(self) -> Student:
        assert self.student is not None
        return self.student


@dataclass(frozen=True)
class Ahead:
    """What is started, or asked whether it is there, before any weights are loaded; None where it is not used.

    samplers: the servers that sample, and the name under which they serve the student's base.
    """

    inside: EngineInside | None
    samplers: tuple[HttpClient, str] | None
    teacher: Teacher | None


def open_ahead(launch: Launch) -> Ahead:
    """Raises UserError when a server is not there, or serves something else."""
    config = launch.inputs.config
    teacher = on_every_process(lambda: _ask_teacher(launch)) if config.teacher_kind == "server" else None
    if config.rollouts_kind != "vllm":
        return Ahead(None, None, teacher)
    if config.rollouts_url:
        return Ahead(None, _ask_samplers(launch), teacher)
    return Ahead(on_every_process(lambda: EngineInside(launch)), None, teacher)


def open_engine(launch: Launch, student: Student, ahead: Ahead) -> tuple[RolloutEngine, MakeEngine]:
    """What samples for training, and what makes samplers for evaluation."""
    config = launch.inputs.config
    settings: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "stop_ids": launch.inputs.pair.stops.ids,
        "seed": config.seed,
    }
    kinds = {"hf": _our_own, "continuous": _continuous, "vllm": _served if ahead.samplers else _inside}
    make = kinds[config.rollouts_kind](launch, student, ahead, settings)
    engine = make(choose=NucleusSampling(config.temperature, config.top_p), group_size=config.group_size)
    if config.overlap:
        overlapped = OverlappedRollouts(engine, partial(_own_share, launch), lambda: student.updates.version)
        launch.closing.callback(overlapped.close)
        return overlapped, make
    return engine, make


def _own_share(launch: Launch, step: int) -> list[tuple[int, Prompt]] | None:
    """(position, prompt) of this process in a step; None past the last step."""
    if step >= launch.inputs.config.steps:
        return None
    batch = launch.inputs.prompts.batch(step)
    return share_of_process(batch, launch.accelerator.process_index, launch.accelerator.num_processes)


def _our_own(launch: Launch, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    del ahead
    return partial(
        HFRollouts,
        student.model,
        autocast=launch.accelerator.autocast,
        pad_id=launch.inputs.pair.pad_id,
        vocab_size=launch.inputs.pair.vocab_size,
        batch_size=launch.inputs.config.sampling_batch_size,
        say=launch.say,
        **settings,
    )


def _continuous(launch: Launch, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.continuous import ContinuousRollouts, SampledModel

    del ahead
    sampled = SampledModel(student.model, launch.inputs.precision.dtype)
    return partial(
        ContinuousRollouts,
        sampled,
        process=launch.accelerator.process_index,
        pad_id=launch.inputs.pair.pad_id,
        **settings,
    )


def _inside(launch: Launch, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.vllm_colocated import ColocatedVLLMRollouts

    assert ahead.inside is not None
    ahead.inside.student = student
    return partial(ColocatedVLLMRollouts, ahead.inside.engine, vocab_size=launch.inputs.pair.vocab_size, **settings)


def _served(launch: Launch, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.vllm_server import VLLMServerRollouts
    from local_distill.serving.publishing import AdapterPublisher, WeightsPublisher, fresh_folder

    assert ahead.samplers is not None
    (client, base), accelerator = ahead.samplers, launch.accelerator
    folder = on_main_process(accelerator, lambda: fresh_folder(student.folder / SERVED))
    if accelerator.is_main_process:
        launch.closing.callback(shutil.rmtree, folder, ignore_errors=True)
    shared = client, student.updates, folder, partial(on_main_process, accelerator), accelerator.wait_for_everyone
    publisher: AdapterPublisher | WeightsPublisher
    if launch.inputs.lora:
        publisher = AdapterPublisher(*shared, model=student.model)
    else:
        publisher = WeightsPublisher(*shared, model=student.model, base=base, dtype=launch.inputs.precision.dtype)
    rows = launch.inputs.pair.rows
    return partial(
        VLLMServerRollouts, client, publisher, vocab_size=launch.inputs.pair.vocab_size, rows=rows, **settings
    )


def _ask_samplers(launch: Launch) -> tuple[HttpClient, str]:
    from local_distill.rollouts import vllm_server
    from local_distill.serving.client import HttpClient

    config = launch.inputs.config
    client = HttpClient(
        comma_separated(config.rollouts_url), flag=vllm_server.FLAG, key_variable=vllm_server.KEY_VARIABLE,
        timeout=config.server_timeout, patience=config.server_patience, concurrency=config.server_concurrency,
        say=launch.say,
    )  # fmt: skip
    launch.closing.callback(client.close)
    choose = NucleusSampling(config.temperature, config.top_p)
    tokenizer = launch.inputs.pair.student.tokenizer
    leaves_out = launch.inputs.pair.rows > launch.inputs.pair.vocab_size
    check = partial(
        vllm_server.check_engine, client, tokenizer, longest=launch.inputs.longest, choose=choose, leaves_out=leaves_out
    )
    return client, on_main_process(launch.accelerator, check)


def open_teacher(launch: Launch, student: TokenScorer, loss: Loss, ahead: Ahead) -> tuple[Teacher, Teacher]:
    """Who is learned from, as training reads it and as evaluation does. student: not wrapped for training."""
    config, inputs, device = launch.inputs.config, launch.inputs, launch.accelerator.device
    dtype, top_k = inputs.precision.dtype, config.loss_top_k or 0
    if ahead.teacher is not None:
        return ahead.teacher, ahead.teacher
    if config.teacher_kind == "zero3":
        assert inputs.teacher_sharding is not None
        sharded = load_zero3_teacher(
            inputs.pair.teacher,
            inputs.teacher_sharding,
            dtype,
            inputs.pair.vocab_size,
            partial(any_process, launch.accelerator),
        )  # fmt: skip
        reader = (
            TopTokensTeacher(sharded, device, top_k)
            if loss.needs == TeacherView.top_tokens
            else LocalTeacher(sharded, device)
        )
        return reader, TopTokensTeacher(sharded, device, SHOWN_TOP)
    scorer: WholeScorer = BaseOfStudent(student) if config.teacher_kind == "self" else _load_whole(launch)
    whole = WholeDistributionTeacher(scorer, device)
    readers: dict[TeacherView, Teacher] = {
        TeacherView.tokens: LocalTeacher(scorer, device),
        TeacherView.top_tokens: TopTokensTeacher(scorer, device, top_k),
        TeacherView.whole_distribution: whole,
    }
    return readers[loss.needs], whole


def _load_whole(launch: Launch) -> TokenScorer:
    """A teacher that this process holds whole: on its device, packed there, or passing through it."""
    config, inputs, device = launch.inputs.config, launch.inputs, launch.accelerator.device
    dtype = inputs.precision.dtype
    if config.teacher_quantization != "none":
        packed = quantization_config(config.teacher_quantization, dtype)
        scorer = TokenScorer(inputs.pair.teacher.load(dtype, packed, device), inputs.pair.vocab_size)
    elif config.teacher_offload == "cpu":
        scorer = offloaded(TokenScorer(inputs.pair.teacher.load(dtype), inputs.pair.vocab_size), device)
    else:
        scorer = TokenScorer(inputs.pair.teacher.load(dtype).to(device), inputs.pair.vocab_size)
    check_scorer(scorer, "--teacher_model")
    return scorer


def _ask_teacher(launch: Launch) -> Teacher:
    from local_distill.teachers.server import open_server_teacher

    config, inputs = launch.inputs.config, launch.inputs
    teacher = open_server_teacher(
        comma_separated(config.teacher_url),
        model=config.teacher_model or None,
        student_tokenizer=inputs.pair.student.tokenizer,
        vocab_size=inputs.pair.vocab_size,
        longest=launch.inputs.longest,
        top_k=config.loss_top_k or 0,
        device=launch.accelerator.device,
        timeout=config.server_timeout,
        patience=config.server_patience,
        concurrency=config.server_concurrency,
        say=launch.say,
    )
    launch.closing.callback(teacher.close)
    return teacher
