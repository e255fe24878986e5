"""A prompt as it was read: chat messages, before any tokenizer has seen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from local_distill.errors import UserError


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class RawPrompt:
    """What the student is asked.

    messages: the chat up to its last user message; one user message for plain text. Empty for a row
        of a data set that asks nothing, which is then left out.
    origin: where it was read, for messages: ``prompts.txt:7``, ``deepmath[1204]``.
    answer: the reference answer where the source has one.
    """

    messages: tuple[Message, ...]
    origin: str
    answer: str | None = None

    @property
    def text(self) -> str:
        """The last user message, for people to read."""
        return self.messages[-1]["content"] if self.messages else ""


class Rows(Protocol):
    """Prompts by their place in the source; a list of them, or a data set that reads a row when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> RawPrompt: ...


@dataclass(frozen=True)
class RawPrompts:
    """The prompts of one source, in the source's own order.

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
        return self.rows[index]


def read_messages(value: object, where: str) -> tuple[Message, ...]:
    """Text, or chat messages up to the last one of the user, as messages.

    Empty when nothing is asked: None, blank text, no user message, or a blank one at the end.
    Raises UserError, beginning with ``where``, when ``value`` is something else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (Message(role="user", content=value),) if value.strip() else ()
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise UserError(
            f"{where}: {type(value).__name__} given, needs text, or a list of chat messages with role and content"
        )
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in value]
    asked = len(roles) - roles[::-1].index("user") if "user" in roles else 0
    # With no user message every turn is still looked at, to tell a wrong shape from a chat that asks nothing.
    messages = tuple(_message(turn, where) for turn in value[: asked or len(roles)])
    return messages if asked and messages[-1]["content"].strip() else ()


def _message(turn: object, where: str) -> Message:
    if isinstance(turn, Mapping):
        role, content = turn.get("role"), turn.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return Message(role=role, content=content)
        given = f"role {type(role).__name__} and content {type(content).__name__}"
    else:
        given = type(turn).__name__
    raise UserError(f"{where}: a chat message with {given} given, needs an object with role and content, both text")


def read_answer(value: object) -> str | None:
    """A reference answer as text; None when there is none, or when it is not one value."""
    return str(value) if isinstance(value, str | int | float) else None


def one_line(error: BaseException, width: int = 240) -> str:
    """The reason that an exception gives, as one line of at most ``width`` characters."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= width else reason[: width - 1] + "…"
