"""A prompt as it was read: chat messages, before any tokenizer has seen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from local_distill.errors import UserError

MOST_WRONG = 0.5
"""Share of the rows read; where as many are wrong, the source is. Fewer are left out, and counted aloud."""

Message = dict[str, Any]
"""One turn of a chat: role, content, and whatever else the chat template may look for, such as tool_calls.

content is text; a turn that only calls tools may have none.
"""


@dataclass(frozen=True)
class RawPrompt:
    """The student is asked this.

    messages: the chat up to what is to be answered, its last user message or the results of tools after it; one user
        message for plain text. Empty for a row of a data set that asks nothing, which is then left out.
    origin: where it was read, for messages: ``prompts.txt:7``, ``deepmath[1204]``.
    answer: the reference answer where the source has one.
    tools: JSON schemas of the functions that may be called, for the chat template.
    """

    messages: tuple[Message, ...]
    origin: str
    answer: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """Return the last user message, for people to read."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


class Rows(Protocol):
    """Prompts are had by their place in the source here, each read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> RawPrompt: ...


@dataclass(frozen=True)
class RawPrompts:
    """The prompts of one source are here, in its own order.

    name: the source in words, for messages.
    must_fit: the user wrote these prompts, so one that the context cannot hold is a mistake to be
        mended; in a data set it is a row to leave out.
    """

    rows: Rows
    name: str
    must_fit: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> RawPrompt:
        """Read one. Raises UserError, with its place, where that row is no prompt: it alone is wrong."""
        return self.rows[index]


def read_answer(value: object) -> str | None:
    """Return a reference answer as text; None when there is none, or when it is not one value."""
    return str(value) if isinstance(value, str | int | float) else None


def check_share_of_wrong(wrong: Sequence[UserError], looked_at: int) -> None:
    """Raise UserError, that of the first one, where so many rows are wrong that it is no accident."""
    if wrong and len(wrong) >= MOST_WRONG * looked_at:
        count = f"; {len(wrong)} of the {looked_at} rows read are wrong" if looked_at > 1 else ""
        raise UserError(f"{wrong[0]}{count}")
