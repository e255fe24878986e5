"""What an evaluation finds, as the files of a run keep it and as people read it. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
