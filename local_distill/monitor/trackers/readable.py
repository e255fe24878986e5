"""Completions as trackers can show them: rows of a table, HTML with a colour for each token, Markdown.

Whatever a model wrote is untrusted: it stands in HTML and Markdown only escaped, and is never markup.
"""

from __future__ import annotations

import html
import math
import string
from collections.abc import Iterator

from local_distill.runs.evaluations import Completion, Evaluation, Piece
from local_distill.wording import clean, counted, number

COLUMNS = ("prompt", "completion", "tokens", "finish", "reverse_kl")
FULL_COLOUR = 3.0
"""Nats of reverse KL from which on a token's colour does not grow any more."""
MARKDOWN_TOKENS = 256
"""Tokens of one completion that Markdown shows; all of them are in completions.jsonl."""

_ABOVE, _BELOW = "214,69,65", "65,105,225"  # red where the student is surer than the teacher, blue where it is less
# As character references, punctuation means nothing to Markdown or to HTML.
_PUNCTUATION = str.maketrans({each: f"&#{ord(each)};" for each in string.punctuation if each != ","})


def rows(evaluation: Evaluation) -> list[list[str | int | float | None]]:
    """Return a row of COLUMNS for each completion; plain text, for trackers that escape what they show."""
    return [[clean(c.prompt), clean(c.text), c.tokens, c.finish, _finite(c.reverse_kl)] for c in evaluation.completions]


def coloured(completion: Completion) -> str:
    """Return HTML of one completion: a token's colour is its reverse KL, its title what both models made of it."""
    tokens = "".join(map(_coloured_token, completion.pieces)) or html.escape(clean(completion.text))
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{tokens}</div>'


def page(evaluation: Evaluation) -> str:
    """Return HTML of all completions of an evaluation, each below its prompt."""
    return "".join(
        f'<h4 style="white-space:pre-wrap">{html.escape(clean(c.prompt))}</h4>{coloured(c)}'
        f"<p><small>{counted(c.tokens, 'token')}, {number(c.reverse_kl)} nats a token</small></p>"
        for c in evaluation.completions
    )


def markdown(evaluation: Evaluation) -> str:
    """Return Markdown of all completions: the text, then a table of its tokens."""
    return "\n\n".join("\n".join(_markdown_of(each)) for each in evaluation.completions)


def _markdown_of(completion: Completion) -> Iterator[str]:
    yield f"#### {_inert(completion.prompt)}\n"
    yield _inert(completion.text) + "\n"
    yield f"{counted(completion.tokens, 'token')}, {number(completion.reverse_kl)} nats a token\n"
    yield "| token | reverse KL | student | teacher | teacher's likeliest |"
    yield "| --- | --- | --- | --- | --- |"
    for piece in completion.pieces[:MARKDOWN_TOKENS]:
        likeliest = " ".join(f"{_inert(_visible(text))} {number(logprob)}" for text, logprob in piece.top)
        numbers = " | ".join(map(number, (piece.reverse_kl, piece.student, piece.teacher)))
        yield f"| {_inert(_visible(piece.text))} | {numbers} | {likeliest} |"
    more = len(completion.pieces) - MARKDOWN_TOKENS
    if more > 0:
        yield f"\n{more} more tokens are in completions.jsonl"


def _coloured_token(piece: Piece) -> str:
    shown = "\n".join(map(clean, piece.text.split("\n")))  # clean alone takes a newline at the end for the end
    share = 0.0 if math.isnan(piece.reverse_kl) else min(abs(piece.reverse_kl) / FULL_COLOUR, 1.0)
    colour = f"rgba({_ABOVE if piece.reverse_kl > 0 else _BELOW},{share:.2f})"
    return f'<span style="background:{colour}" title="{html.escape(_explained(piece))}">{html.escape(shown)}</span>'


def _explained(piece: Piece) -> str:
    """Return what stands in a token's title."""
    lines = [
        f"reverse KL {number(piece.reverse_kl)} nats",
        f"student {number(piece.student)}, teacher {number(piece.teacher)}",
        *(f"{_visible(text)} {number(logprob)}" for text, logprob in piece.top),
    ]
    return "\n".join(lines)


def _visible(text: str) -> str:
    """Return a token in quotes, so that its spaces are seen, newlines as \\n."""
    return '"' + "\\n".join(map(clean, text.split("\n"))) + '"'


def _inert(text: str) -> str:
    """Return text that no reader of Markdown or HTML takes for markup, on one line."""
    return " ".join(clean(text).split("\n")).translate(_PUNCTUATION)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
