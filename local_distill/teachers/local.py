"""A teacher whose weights are in this process, whole or in shares."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from local_distill.backends import Opening, OpenTeacher, TeacherBackend, TeacherReaders
from local_distill.batch import (
    HeadStates,
    Rollout,
    SampledLogprobs,
    ScoredBatch,
    Teacher,
    TeacherView,
    TokenBatch,
    TopLogprobs,
)
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.head.logprobs import Head, TokenReading, TopTokens, read_tokens, read_top_tokens
from local_distill.models.files import ModelFiles
from local_distill.models.footprint import Held, Place, Shape, TeacherMemory
from local_distill.models.quantization import check_quantization, held_packed, quantization_config
from local_distill.models.scorer import Reading, TokenScorer
from local_distill.models.start_checks import can_share_prompts, check_scorer
from local_distill.teachers.offload import held_offloaded, offloaded
from local_distill.teachers.teacher_checks import check_named, check_own, check_packing


def freeze(scorer: nn.Module) -> None:
    """No dropout, no gradient."""
    scorer.eval()
    scorer.requires_grad_(False)


def held(config: TrainConfig, shape: Shape, place: Place) -> Held:
    """Count the teacher that each process holds whole: as it is, packed, or passing through its device."""
    if config.teacher_quantization != "none":
        return held_packed(config.teacher_quantization, shape, place)
    if config.teacher_offload != "none":
        return held_offloaded(shape, place)
    return Held("local", shape, place.item * shape.parameters)


class Scorer(Protocol):
    """A TokenScorer, or what stands for one."""

    def __call__(self, batch: TokenBatch, read: Reading = ...) -> Any: ...


class WholeScorer(Scorer, Protocol):
    """One whose hidden states can be had as well: not sharded."""

    @property
    def shares_prompts(self) -> bool: ...

    def states(self, batch: TokenBatch) -> HeadStates: ...


class LocalTeacher:
    """Scores with a TokenScorer, wrapped or not. Frozen, in its own low precision, without autocast.

    scorer: on ``device``; with a sharded one every call is collective.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        if isinstance(scorer, nn.Module):
            freeze(scorer)
        self._scorer = scorer
        self._device = device

    def prepare(self, rollout: Rollout) -> None:
        """Nothing can be done before the student has left the processor."""
        del rollout

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher; the batch comes back on ``device``."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, SampledLogprobs(*self._scorer(tokens)))


class TopTokensTeacher(LocalTeacher):
    """Gives its k likeliest tokens at each position as well."""

    def __init__(self, scorer: Scorer, device: torch.device, k: int) -> None:
        super().__init__(scorer, device)
        self._k = k

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        reading, top = self._scorer(tokens, self._read)
        return ScoredBatch(tokens, TopLogprobs(*reading, top=top))

    def _read(self, hidden: Tensor, head: Head, targets: Tensor) -> tuple[TokenReading, TopTokens]:
        return read_tokens(hidden, head, targets), read_top_tokens(hidden, head, self._k)


class WholeDistributionTeacher(LocalTeacher):
    """Hands over its hidden states, for losses over the whole vocabulary."""

    def __init__(self, scorer: WholeScorer, device: torch.device) -> None:
        super().__init__(scorer, device)
        self._states = scorer.states

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> ScoredBatch:
        """See Teacher."""
        tokens = batch.to(self._device)
        return ScoredBatch(tokens, self._states(tokens))


def check(config: TrainFields) -> None:
    """Ask for a model; refuse what is for another kind of teacher, and two ways to make one smaller."""
    check_own(config, "local", "teacher_offload", "teacher_quantization")
    check_named(config)
    if config.teacher_offload != "none" and config.teacher_quantization != "none":
        raise UserError("--teacher_offload and --teacher_quantization: both given; drop one of them")


def check_files(config: TrainConfig, teacher: ModelFiles) -> None:
    """Refuse a model that comes quantised, where it cannot be read or is to be made smaller once more."""
    check_packing(
        teacher,
        ("--teacher_quantization", config.teacher_quantization != "none", True),
        ("--teacher_offload", config.teacher_offload != "none", False),
    )
    if config.teacher_quantization != "none":
        check_quantization(config.teacher_quantization)


def open_local(opening: Opening) -> OpenTeacher:
    """Load a teacher that each process holds whole: on its device, packed there, or passing through it."""
    config, files, device = opening.config, opening.pair.teacher, opening.accelerator.device

    def load(student: TokenScorer, needs: TeacherView) -> TeacherReaders:
        del student
        vocab_size = opening.pair.vocab_size
        if config.teacher_quantization != "none":
            packed = quantization_config(config.teacher_quantization, opening.dtype)
            scorer = TokenScorer(files.load(opening.dtype, packed, device), vocab_size)
        elif config.teacher_offload == "cpu":
            scorer = offloaded(TokenScorer(files.load(opening.dtype), vocab_size), device)
        else:
            scorer = TokenScorer(files.load(opening.dtype).to(device), vocab_size)
        check_scorer(scorer, files.flag)
        scorer.shares_prompts = opening.config.group_size > 1 and can_share_prompts(scorer)
        return readers_of_whole(scorer, device, needs, config.loss_top_k or 0)

    return load


def readers_of_whole(scorer: WholeScorer, device: torch.device, needs: TeacherView, top_k: int) -> TeacherReaders:
    """Read a model that is here whole as the loss needs it, and for evaluation by its whole distribution."""
    whole = WholeDistributionTeacher(scorer, device)
    readers: dict[TeacherView, Teacher] = {
        TeacherView.tokens: LocalTeacher(scorer, device),
        TeacherView.top_tokens: TopTokensTeacher(scorer, device, top_k),
        TeacherView.whole_distribution: whole,
    }
    model = scorer.model if isinstance(scorer, TokenScorer) else None
    return TeacherReaders(readers[needs], whole, scorer.shares_prompts, model)


BACKEND = TeacherBackend(
    check=check,
    check_files=check_files,
    gives=TeacherView.whole_distribution,
    memory=TeacherMemory(held),
    open=open_local,
    samples=lambda config: config.teacher_offload == "none",
)
