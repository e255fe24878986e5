"""The student itself teaches, as it was before its adapter: no second model in memory.

For repairing what a fine-tune forgot: the teacher is the model that the adapter was put on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from local_distill.backends import Opening, OpenTeacher, TeacherBackend, TeacherReaders
from local_distill.batch import HeadStates, TeacherView, TokenBatch
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.head.logprobs import read_tokens
from local_distill.models.footprint import TeacherMemory
from local_distill.models.scorer import Reading, TokenScorer
from local_distill.teachers.local import readers_of_whole
from local_distill.teachers.teacher_checks import check_own


class BaseOfStudent:
    """This reads the student's frozen base, in the precision that it is held in; the adapter is on again afterwards.

    scorer: the student, not wrapped for training, with a peft adapter.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        self._scorer = scorer
        self._adapted: Any = scorer.model

    @property
    def shares_prompts(self) -> bool:
        """See TokenScorer."""
        return self._scorer.shares_prompts

    @torch.no_grad()
    def __call__(self, batch: TokenBatch, read: Reading = read_tokens) -> Any:
        """Return a reading of the base; see TokenScorer."""
        with self._without_adapter():
            return self._scorer(batch, read)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> HeadStates:
        """Return the base's hidden states; see TokenScorer."""
        with self._without_adapter():
            return self._scorer.states(batch)

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        was_training = self._scorer.training
        self._scorer.eval()
        try:
            with self._adapted.disable_adapter():
                yield
        finally:
            self._scorer.train(was_training)


def check(config: TrainFields) -> None:
    """Ask for an adapter, and refuse a model of the teacher's own."""
    check_own(config, "self")
    if not config.use_lora:
        raise UserError("--teacher_backend self: the teacher is the student without its adapter; add --use_lora")
    if config.teacher_model:
        raise UserError("--teacher_model: given with --teacher_backend self, where it is the student itself; drop it")


def open_self(opening: Opening) -> OpenTeacher:
    """Read the student without its adapter."""

    def with_student(student: TokenScorer, needs: TeacherView) -> TeacherReaders:
        device = opening.accelerator.device
        return readers_of_whole(BaseOfStudent(student), device, needs, opening.config.loss_top_k or 0)

    return with_student


BACKEND = TeacherBackend(
    check=check,
    gives=TeacherView.whole_distribution,
    memory=TeacherMemory(None, "the student without its adapter", is_student=True),
    open=open_self,
    words=lambda _: "itself without its adapter",
)
