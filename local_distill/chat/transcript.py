"""A conversation in a file: JSON lines for programs, Markdown for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_distill.chat.conversation import Answer, Conversation
from local_distill.errors import UserError
from local_distill.runs.jsonl import to_json
from local_distill.wording import clean, number

WRITERS = (".jsonl", ".md")


def save_transcript(conversation: Conversation, path: Path) -> None:
    """Write it, one message a line or under headings, by the file's ending.

    Raises UserError for another ending, for a file that is there, and where it cannot be written.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"/save {path}: needs a name that ends in {' or '.join(WRITERS)}")
    text = "\n".join(_json_lines(conversation) if path.suffix == ".jsonl" else _markdown(conversation)) + "\n"
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"/save {path}: is there already; give another name") from error
    except OSError as error:
        raise UserError(f"/save {path}: cannot be written ({error.strerror}); give another place") from error


def _json_lines(conversation: Conversation) -> Iterator[str]:
    if conversation.system_prompt is not None:
        yield to_json({"role": "system", "content": conversation.system_prompt})
    for turn in conversation.turns:
        yield to_json({"role": "user", "content": turn.question})
        teacher = {} if turn.teacher is None else {"teacher": _record(turn.teacher)}
        yield to_json({"role": "assistant", **_record(turn.student), **teacher})


def _record(answer: Answer) -> dict[str, Any]:
    record = asdict(answer)
    return {"content": record.pop("text"), **record}


def _markdown(conversation: Conversation) -> Iterator[str]:
    yield "# Conversation"
    if conversation.system_prompt is not None:
        yield from ("", "**system**", "", _quoted(conversation.system_prompt))
    for turn in conversation.turns:
        yield from ("", "**user**", "", _quoted(turn.question))
        yield from ("", f"**student**{_measured(turn.student)}", "", _quoted(turn.student.text))
        if turn.teacher is not None:
            yield from ("", f"**teacher**{_measured(turn.teacher)}", "", _quoted(turn.teacher.text))


def _measured(answer: Answer) -> str:
    kl = "" if answer.reverse_kl is None else f", reverse KL {number(answer.reverse_kl)} nats a token"
    return f" ({answer.tokens} tokens, ended by {answer.finish}{kl})"


def _quoted(text: str) -> str:
    """A block quote, in which no tag and no link of a model's takes effect."""
    lines = re.sub(r"([\\`*_\[\]<>#|!])", r"\\\1", clean(text)).split("\n")
    return "\n".join(f"> {line}".rstrip() + "  " for line in lines)
