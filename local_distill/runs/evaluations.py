"""What a run finds, as its files keep it and as people read it: its evaluations, and how it ended. No torch in here."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SHOWN_TOP = 5
"""The teacher's likeliest tokens that are shown beside each token."""


@dataclass(frozen=True)
class Piece:
    """A token of a completion is told in words.

    text: what it adds to the text; a special token's own name. student, teacher: s_t and q_t, nats, temperature 1.
    reverse_kl: the exact KL at that position where the teacher gives its whole distribution, else s_t − q_t, nats.
    top: the teacher's likeliest tokens there with their log-probs, likeliest first, up to 5; empty where the teacher
        cannot tell.
    """

    text: str
    student: float
    teacher: float
    reverse_kl: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished rollout is told in words, for people to read.

    reverse_kl: mean of log p_student − log q_teacher over its tokens, nats per token.
    pieces: its tokens one by one, special ones included; empty in files of older runs.
    """

    prompt: str
    text: str
    tokens: int
    finish: Literal["stop", "length"]
    reverse_kl: float
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The held-out prompts say this of the student after ``step`` updates.

    reverse_kl: nats per token, over samples at temperature 1 and top-p 1, so that it is a consistent
        estimate of KL(student‖teacher); standard_error: of that mean, prompts taken as independent.
    length: mean completion tokens. truncated: share of completions that max_new_tokens ended.
    completions: the same few prompts at every evaluation, in the same order, with the same random numbers.
    accuracy: share of the samples that are right, of the prompts that have an answer; NaN where that is not measured.
    """

    step: int
    reverse_kl: float
    standard_error: float
    length: float
    truncated: float
    completions: tuple[Completion, ...]
    accuracy: float = math.nan
    accuracy_standard_error: float = math.nan


@dataclass(frozen=True)
class TrainResult:
    """A run has ended in this way.

    folder: of the run. steps: done in all, those of earlier launches included.
    before, after: the evaluation before training and the last one, None where no prompts were held out, or where the
    run's files do not hold it any more; and on all processes but the main one.
    stopped_by: the signal that ended it early, after the checkpoint of the last step was written; else None.
    """

    folder: Path
    steps: int
    before: Evaluation | None = None
    after: Evaluation | None = None
    stopped_by: signal.Signals | None = None

    @property
    def checkpoint(self) -> Path:
        """Return the folder of the student, or of its adapter, after the last step."""
        return self.folder / f"step-{self.steps}"

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as shells and schedulers expect; 0 when the run ended by itself."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by
