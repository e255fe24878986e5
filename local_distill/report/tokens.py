"""Completions token by token, in as few bytes as a page wants: columns, and each text once."""

from __future__ import annotations

import unicodedata
from typing import Any

from local_distill.report.curves import finite
from local_distill.report.reading import ReportedRun
from local_distill.runs.evaluations import Completion
from local_distill.wording import JOINERS

DIGITS = 4
"""Decimals of a log-prob, nats: 0.01 % of a probability."""


class Texts:
    """Texts are held once each, by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text, its place in ``all``."""
        return self._numbers.setdefault(visible(text), len(self._numbers))

    @property
    def all(self) -> list[str]:
        """Return every text, at the place of its number."""
        return list(self._numbers)


def evaluations_of(run: ReportedRun, texts: Texts) -> list[dict[str, Any]]:
    """Return the evaluations that show tokens, oldest first: {"step", "completions"}, those in columns of T tokens.

    text: numbers of texts. student, teacher: log-probs of the token; reverse_kl: all nats, None where unknown.
    top: for each token a flat list: number of a text, its log-prob, and so on, the teacher's likeliest first.
    """
    return [
        {"step": sample.step, "completions": [_completion(each, texts) for each in sample.completions]}
        for sample in run.samples
        if any(each.pieces for each in sample.completions)
    ]


def _completion(completion: Completion, texts: Texts) -> dict[str, Any]:
    pieces = completion.pieces
    return {
        "prompt": texts.number(completion.prompt),
        "mean": finite(completion.reverse_kl),
        "finish": completion.finish,
        "text": [texts.number(piece.text) for piece in pieces],
        **{name: [_nats(getattr(piece, name)) for piece in pieces] for name in ("student", "teacher", "reverse_kl")},
        "top": [[part for text, nats in piece.top for part in (texts.number(text), _nats(nats))] for piece in pieces],
    }


def _nats(value: float) -> float | None:
    number = finite(value)
    return None if number is None else round(number, DIGITS)


def visible(text: str) -> str:
    """Return the text of a token with what nobody would see, or would see turned around, spelled out: ⟨U+200B⟩."""
    return "".join(map(_spelled_out, text))


def _spelled_out(character: str) -> str:
    if character in "\n\t" or character in JOINERS:
        return character
    category = unicodedata.category(character)
    if category == "Cs":  # half of a surrogate pair, which no encoding can write
        return "\N{REPLACEMENT CHARACTER}"
    return f"⟨U+{ord(character):04X}⟩" if category in ("Cc", "Cf") else character
