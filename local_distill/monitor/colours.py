"""Tokens in the colour of their disagreement, for a terminal.

Whatever a model wrote is untrusted: it is shown only through ``harmless``, and never as markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.color import Color
from rich.style import Style
from rich.text import Text

from local_distill.runs.evaluations import Piece
from local_distill.wording import clean

FAINTEST, STRONGEST = 0.05, 5.0
"""Nats of reverse KL between which the colour goes from yellow to red; below the first there is none."""
YELLOW, RED = (214, 170, 0), (220, 30, 60)


def harmless(text: str) -> str:
    """Return ``clean`` for a part of a text: line ends stay where they are, also at its end."""
    return "\n".join(clean(line) for line in text.split("\n"))


def colour_of(reverse_kl: float | None) -> Style:
    """Return a colour from none over yellow to red, by the logarithm; NaN is red."""
    if reverse_kl is None or reverse_kl < FAINTEST:
        return Style.null()
    share = min(1.0, math.log(reverse_kl / FAINTEST) / math.log(STRONGEST / FAINTEST))
    share = 1.0 if math.isnan(share) else share
    mixed = (round(a + share * (b - a)) for a, b in zip(YELLOW, RED, strict=True))
    return Style(color=Color.from_rgb(*mixed))


def in_text(text: str, reverse_kl: float | None, numbers: bool = False) -> Text:
    """Return a token's text with its colour and, where ``numbers`` are wanted, its reverse KL behind it."""
    shown = Text(harmless(text), style=colour_of(reverse_kl))
    if numbers and reverse_kl is not None:
        shown.append(f"[{reverse_kl:.2f}]", style="dim")
    return shown


def on_one_line(pieces: Sequence[Piece]) -> Text:
    """Return the tokens of a completion in their colours; a line end in it is one ⏎."""
    line = Text()
    for piece in pieces:
        line.append_text(in_text(piece.text.replace("\n", "⏎"), piece.reverse_kl))
    return line
