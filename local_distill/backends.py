"""Teachers and samplers state what they are, in one record each; docs/extending.md has one of each from outside.

A record is opened in two stages. Before any weights are loaded it asks what it needs to ask: is the server there, does
it serve these tokens? What that returns is called again when the student is in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from local_distill.batch import RolloutEngine, Teacher, TeacherView
from local_distill.config.lookup import SAMPLERS, TEACHERS
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import TrainFields
from local_distill.head.sampling import SamplingParams
from local_distill.models.adapters import Adapter
from local_distill.models.files import ModelFiles
from local_distill.models.footprint import SamplerMemory, TeacherMemory
from local_distill.models.pair import ModelPair
from local_distill.models.scorer import TokenScorer
from local_distill.training.optimizer import Updates


@dataclass(frozen=True)
class Opening:
    """A backend is opened with this.

    dtype: precision of the products. longest: tokens of the longest prompt and completion together. folder: of the run.
    say: tells the user. closing: what is to be closed when the loop has ended.
    """

    config: TrainConfig
    pair: ModelPair
    lora: Adapter | None
    dtype: torch.dtype
    longest: int
    accelerator: Accelerator
    folder: Path
    say: Callable[[str], None]
    closing: ExitStack


@dataclass(frozen=True)
class TeacherReaders:
    """A teacher is read in two ways. training: as the loss needs it. evaluation: as fully as it can be.

    shares_prompts: whether it can read a prompt once for all its rollouts, or does not read them here at all.
    model: what it can be sampled with here, where it can be.
    """

    training: Teacher
    evaluation: Teacher
    shares_prompts: bool = True
    model: nn.Module | None = None


OpenTeacher = Callable[[TokenScorer, TeacherView], TeacherReaders]
"""The second stage of a teacher. It is given the student, not wrapped for training, and what the loss needs."""


@dataclass(frozen=True, kw_only=True)
class TeacherBackend:
    """A teacher states what it is. Its checks raise UserError; None where there is nothing to check.

    gives: the most that it can give at each position. memory: what it takes; where that counts weights, the files of
    ``--teacher_model`` are opened. words: who is learned from, for people. where: such as ``behind --teacher_url``,
    where it cannot give all. check: refuses settings that it cannot do with. check_machine: where a package or a file
    of its own is not there. check_files: files of ``--teacher_model`` that it cannot do with. samples: whether it can
    be sampled with, as --teacher_share asks for.
    """

    gives: TeacherView
    memory: TeacherMemory
    open: Callable[[Opening], OpenTeacher]
    check: Callable[[TrainFields], None] | None = None
    words: Callable[[TrainConfig], str] = lambda config: config.teacher_model
    where: str = "of this kind"
    check_machine: Callable[[TrainConfig], None] | None = None
    check_files: Callable[[TrainConfig, ModelFiles], None] | None = None
    samples: Callable[[TrainFields], bool] = lambda _: False


@dataclass(frozen=True)
class Student:
    """The student that is sampled from: the model, unwrapped, and what updates it."""

    model: nn.Module
    updates: Updates


MakeSampler = Callable[[SamplingParams], RolloutEngine]
OpenSampler = Callable[[Student], MakeSampler]
"""The second stage of a sampler. What it gives makes engines for training and for evaluation."""


@dataclass(frozen=True, kw_only=True)
class SamplerBackend:
    """A sampler states what it is. Its checks raise UserError; None where there is nothing to check.

    memory: what it takes; it says as well whether it is our own loop, which samples with the student as it is trained.
    check, check_machine: see TeacherBackend. check_student: refuses a student that it cannot sample from.
    """

    memory: SamplerMemory
    open: Callable[[Opening], OpenSampler]
    check: Callable[[TrainFields], None] | None = None
    check_machine: Callable[[TrainConfig], None] | None = None
    check_student: Callable[[TrainConfig, ModelPair, Adapter | None], None] | None = None


def teacher_of(config: TrainConfig) -> TeacherBackend:
    """Return the record of the teacher that the settings name."""
    found = TEACHERS.get(config.teacher_kind)
    assert isinstance(found, TeacherBackend)
    return found


def sampler_of(config: TrainConfig) -> SamplerBackend:
    """Return the record of the sampler that the settings name."""
    found = SAMPLERS.get(config.rollouts_kind)
    assert isinstance(found, SamplerBackend)
    return found
