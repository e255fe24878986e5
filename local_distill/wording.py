"""Numbers and texts as people read them, in a terminal, a file or a page.

Whatever a model wrote is untrusted: ``clean`` makes of it text that can only be read.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path


def number(value: float) -> str:
    """Return a number with three significant digits: 0.0450, 1.23, 128, 12.3k, 1.23e-05, nan."""
    if not math.isfinite(value):
        return str(value)
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:  # what rounds to 1000 is written as 1.00k
            return f"{value / scale:#.3g}".rstrip(".") + suffix
    return f"{value:#.3g}".rstrip(".")


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number and what it counts: 1 prompt, 2 prompts, 1,024 processes."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; what a cell says is text, and no markup."""
    cells = ([re.sub(r"([\\|<`_*])", r"\\\1", cell.replace("\n", " ")) for cell in row] for row in rows)
    lines = [heading, ["---"] * len(heading), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def did_you_mean(path: str) -> str:
    """Ask for what has nearly the name of the first missing part of a path, and lies where it would; or nothing."""
    missing = Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    try:
        names = [each.name for each in missing.parent.iterdir() if not each.name.startswith(".")]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, names, n=1)
    return f"did you mean {missing.with_name(near[0])}? " if near else ""


def with_error(mean: float, standard_error: float) -> str:
    """Return a mean and its standard error: 1.23 ± 0.045; the mean alone where one sample cannot tell."""
    return number(mean) if math.isnan(standard_error) else f"{number(mean)} ± {standard_error:.2g}"


def percent(share: float) -> str:
    """Return a share between 0 and 1 in percent: 12 %."""
    return f"{100 * share:.0f} %"


def change(before: float, after: float) -> str:
    """Return how much of a number above 0 is gone or was added, in percent: −63 %, +5 %."""
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "−")


def share_with_error(share: float, standard_error: float) -> str:
    """Return a share between 0 and 1 and its standard error, in percentage points: 12.5 % ± 3.1; or the share alone."""
    error = "" if math.isnan(standard_error) else f" ± {100 * standard_error:.1f}"
    return f"{100 * share:.1f} %{error}"


def shorten_middle(text: str, characters: int) -> str:
    """Return text of at most so many characters, three at least: an ellipsis stands for what is cut in the middle."""
    if len(text) <= characters:
        return text
    tail = (characters - 1) // 2
    return f"{text[: characters - 1 - tail]}…{text[-tail:]}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 12 min 3 s, 1 h 23 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def clean(text: str) -> str:
    """Return text that can only be read: no escape sequence, no control or invisible character; "\\n" ends a line."""
    lines = _ESCAPE_SEQUENCE.sub("", text).expandtabs(4).splitlines()
    return "\n".join("".join(map(_printable, line)) for line in lines)


def shorten(text: str, characters: int, lines: int) -> str:
    """Return clean text, at most this long; an ellipsis stands for what is cut, one empty line for several."""
    whole = re.sub(r"\n\s*\n", "\n\n", clean(text).strip("\n"))
    kept = "\n".join(whole.split("\n")[:lines])[:characters]
    return kept if kept == whole else f"{kept.rstrip()} …"


# CSI sequences, and the strings (titles, hyperlinks, …) that a terminal would swallow up to their end.
_ESCAPE_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?")
JOINERS = "\u200c\u200d"
"""Invisible, but Persian and emoji are spelled with them."""


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":  # half of a surrogate pair, which no encoding can write
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category in ("Cc", "Cf") and character not in JOINERS else character


def fenced(text: str, language: str = "text") -> str:
    """Return a block of code in Markdown that its own text cannot end: its fence is longer than any backticks in it."""
    text = clean(text)  # first: cleaning can join two runs of backticks
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
