"""What samples and what scores, as the settings ask."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import nn

from local_distill.batch import Prompt, RolloutEngine, Teacher
from local_distill.config.parsing import comma_separated
from local_distill.config.train_config import TrainConfig
from local_distill.eval.held_out import SHOWN_TOP
from local_distill.inputs import Inputs
from local_distill.losses.registry import Loss, TeacherView
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


@dataclass(frozen=True)
class Site:
    """Where a run happens: what engines need of it, and what is closed when it ends. say: tells the user."""

    inputs: Inputs
    accelerator: Accelerator
    say: Callable[[str], None]
    closing: ExitStack

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.inputs.config

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return self.inputs.longest

    def own_share(self, step: int) -> list[tuple[int, Prompt]] | None:
        """(position, prompt) of this process in a step; None past the last step."""
        if step >= self.config.steps:
            return None
        batch = self.inputs.prompts.batch(step)
        return share_of_process(batch, self.accelerator.process_index, self.accelerator.num_processes)


@dataclass
class Student:
    """The model that is trained, unwrapped; what updates it; and the folder of its run."""

    model: nn.Module
    updates: Updates
    folder: Path


class EngineInside:
    """vLLM in this process. It starts before the models are loaded, for it looks for free memory."""

    def __init__(self, site: Site) -> None:
        from local_distill.rollouts.vllm_colocated import SharedEngine, merged_weights

        self.student: Student | None = None
        dtype = site.inputs.precision.dtype
        self.engine = SharedEngine(
            site.config.student_model,
            weights=lambda: merged_weights(self._student.model, dtype),
            version=lambda: self._student.updates.version,
            dtype=dtype,
            max_tokens=site.longest,
            memory_share=site.config.rollouts_memory_share,
            seed=site.config.seed,
            trust_remote_code=site.config.trust_remote_code,
            eager=site.accelerator.device.type == "cpu",
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


def open_ahead(site: Site) -> Ahead:
    """Raises UserError when a server is not there, or serves something else."""
    config = site.config
    teacher = on_every_process(lambda: _ask_teacher(site)) if config.teacher_kind == "server" else None
    if config.rollouts_kind != "vllm":
        return Ahead(None, None, teacher)
    if config.rollouts_url:
        return Ahead(None, _ask_samplers(site), teacher)
    return Ahead(on_every_process(lambda: EngineInside(site)), None, teacher)


def open_engine(site: Site, student: Student, ahead: Ahead) -> tuple[RolloutEngine, MakeEngine]:
    """What samples for training, and what makes samplers for evaluation."""
    config = site.config
    settings: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "stop_ids": site.inputs.pair.stops.ids,
        "seed": config.seed,
    }
    kinds = {"hf": _our_own, "continuous": _continuous, "vllm": _served if ahead.samplers else _inside}
    make = kinds[config.rollouts_kind](site, student, ahead, settings)
    engine = make(choose=NucleusSampling(config.temperature, config.top_p), group_size=config.group_size)
    if config.overlap:
        overlapped = OverlappedRollouts(engine, site.own_share, lambda: student.updates.version)
        site.closing.callback(overlapped.close)
        return overlapped, make
    return engine, make


def _our_own(site: Site, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    del ahead
    return partial(
        HFRollouts,
        student.model,
        autocast=site.accelerator.autocast,
        pad_id=site.inputs.pair.pad_id,
        vocab_size=site.inputs.pair.vocab_size,
        batch_size=site.config.sampling_batch_size,
        say=site.say,
        **settings,
    )


def _continuous(site: Site, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.continuous import ContinuousRollouts, SampledModel

    del ahead
    sampled = SampledModel(student.model, site.inputs.precision.dtype)
    return partial(
        ContinuousRollouts, sampled, process=site.accelerator.process_index, pad_id=site.inputs.pair.pad_id, **settings
    )


def _inside(site: Site, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.vllm_colocated import ColocatedVLLMRollouts

    assert ahead.inside is not None
    ahead.inside.student = student
    return partial(ColocatedVLLMRollouts, ahead.inside.engine, vocab_size=site.inputs.pair.vocab_size, **settings)


def _served(site: Site, student: Student, ahead: Ahead, settings: dict[str, Any]) -> MakeEngine:
    from local_distill.rollouts.vllm_server import VLLMServerRollouts
    from local_distill.serving.publishing import AdapterPublisher, WeightsPublisher, fresh_folder

    assert ahead.samplers is not None
    (client, base), accelerator = ahead.samplers, site.accelerator
    folder = on_main_process(accelerator, lambda: fresh_folder(student.folder / SERVED))
    if accelerator.is_main_process:
        site.closing.callback(shutil.rmtree, folder, ignore_errors=True)
    shared = client, student.updates, folder, partial(on_main_process, accelerator), accelerator.wait_for_everyone
    publisher: AdapterPublisher | WeightsPublisher
    if site.inputs.lora:
        publisher = AdapterPublisher(*shared, model=student.model)
    else:
        publisher = WeightsPublisher(*shared, model=student.model, base=base, dtype=site.inputs.precision.dtype)
    rows = site.inputs.pair.rows
    return partial(VLLMServerRollouts, client, publisher, vocab_size=site.inputs.pair.vocab_size, rows=rows, **settings)


def _ask_samplers(site: Site) -> tuple[HttpClient, str]:
    from local_distill.rollouts import vllm_server
    from local_distill.serving.client import HttpClient

    config = site.config
    client = HttpClient(
        comma_separated(config.rollouts_url), flag=vllm_server.FLAG, key_variable=vllm_server.KEY_VARIABLE,
        timeout=config.server_timeout, patience=config.server_patience, concurrency=config.server_concurrency,
        say=site.say,
    )  # fmt: skip
    site.closing.callback(client.close)
    choose = NucleusSampling(config.temperature, config.top_p)
    tokenizer = site.inputs.pair.student.tokenizer
    leaves_out = site.inputs.pair.rows > site.inputs.pair.vocab_size
    check = partial(
        vllm_server.check_engine, client, tokenizer, longest=site.longest, choose=choose, leaves_out=leaves_out
    )
    return client, on_main_process(site.accelerator, check)


def open_teacher(site: Site, student: TokenScorer, loss: Loss, ahead: Ahead) -> tuple[Teacher, Teacher]:
    """Who is learned from, as training reads it and as evaluation does. student: not wrapped for training."""
    config, inputs, device = site.config, site.inputs, site.accelerator.device
    dtype, top_k = inputs.precision.dtype, config.top_k or 0
    if ahead.teacher is not None:
        return ahead.teacher, ahead.teacher
    if config.teacher_kind == "zero3":
        assert inputs.teacher_sharding is not None
        sharded = load_zero3_teacher(
            inputs.pair.teacher,
            inputs.teacher_sharding,
            dtype,
            inputs.pair.vocab_size,
            partial(any_process, site.accelerator),
        )  # fmt: skip
        reader = TopTokensTeacher(sharded, device, top_k) if loss.needs == "top" else LocalTeacher(sharded, device)
        return reader, TopTokensTeacher(sharded, device, SHOWN_TOP)
    scorer: WholeScorer = BaseOfStudent(student) if config.teacher_kind == "self" else _load_whole(site)
    whole = WholeDistributionTeacher(scorer, device)
    readers: dict[TeacherView, Teacher] = {
        "tokens": LocalTeacher(scorer, device),
        "top": TopTokensTeacher(scorer, device, top_k),
        "whole": whole,
    }
    return readers[loss.needs], whole


def _load_whole(site: Site) -> TokenScorer:
    """A teacher that this process holds whole: on its device, packed there, or passing through it."""
    config, inputs, device = site.config, site.inputs, site.accelerator.device
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


def _ask_teacher(site: Site) -> Teacher:
    from local_distill.teachers.server import open_server_teacher

    config, inputs = site.config, site.inputs
    teacher = open_server_teacher(
        comma_separated(config.teacher_url),
        model=config.teacher_model or None,
        student_tokenizer=inputs.pair.student.tokenizer,
        vocab_size=inputs.pair.vocab_size,
        longest=site.longest,
        top_k=config.top_k or 0,
        device=site.accelerator.device,
        timeout=config.server_timeout,
        patience=config.server_patience,
        concurrency=config.server_concurrency,
        say=site.say,
    )
    site.closing.callback(teacher.close)
    return teacher
