"""The student itself, as it was before its adapter: no second model in memory.

For repairing what a fine-tune forgot: the teacher is the model that the adapter was put on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from local_distill.batch import HeadStates, TokenBatch
from local_distill.head.logprobs import read_tokens
from local_distill.models.footprint import TeacherMemory
from local_distill.models.scorer import Reading, TokenScorer

MEMORY = TeacherMemory(None, "the student without its adapter", is_student=True)


class BaseOfStudent:
    """Reads the student's frozen base, in the precision that it is held in; the adapter is on again afterwards.

    scorer: the student, not wrapped for training, with a peft adapter.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        self._scorer = scorer
        self._adapted: Any = scorer.model

    @torch.no_grad()
    def __call__(self, batch: TokenBatch, read: Reading = read_tokens) -> Any:
        """See TokenScorer."""
        with self._without_adapter():
            return self._scorer(batch, read)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> HeadStates:
        """See TokenScorer."""
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
