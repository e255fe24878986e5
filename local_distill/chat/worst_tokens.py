"""Why an answer is coloured: the tokens on which the teacher disagrees most, and what it would have said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from local_distill.chat.screen import colour_of
from local_distill.runs.evaluations import Piece
from local_distill.wording import clean, number

SHOWN = 8
BEFORE = 24
"""Characters of the text before a token that are shown with it."""


def worst_tokens(pieces: Sequence[Piece]) -> Table:
    """The tokens with the largest reverse KL, largest first, each with the teacher's likeliest tokens in its place."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("after", "token"):
        table.add_column(heading, overflow="fold")
    for heading in ("reverse KL", "student", "teacher"):
        table.add_column(heading, justify="right")
    table.add_column("the teacher's choices", overflow="fold")
    order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].reverse_kl, i))
    for i in order[:SHOWN]:
        piece = pieces[i]
        before = "".join(each.text for each in pieces[:i])
        table.add_row(
            Text(_visible(before[-BEFORE:]), style="dim"),
            Text(_visible(piece.text), style=colour_of(piece.reverse_kl)),
            number(piece.reverse_kl),
            _share(piece.student),
            _share(piece.teacher),
            Text("  ".join(f"{_visible(text)} {_share(logprob)}" for text, logprob in piece.top)),
        )
    return table


def _visible(text: str) -> str:
    """On one line, with spaces at its ends to be seen."""
    shown = clean(text.replace("\n", "⏎"))
    inner = shown.strip(" ")
    if not inner:
        return "␣" * len(shown) or "·"
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + inner + "␣" * (len(shown) - start - len(inner))


def _share(logprob: float) -> str:
    """A log-prob as a probability: 12 %, 0.3 %, <0.1 %."""
    percent = 100 * math.exp(logprob)
    return "<0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 1 else f"{percent:.0f} %"
