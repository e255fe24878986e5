"""What was said, how it is rendered for the next answer, and how it is kept in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from local_distill.chat.answering import Token
from local_distill.errors import UserError
from local_distill.eval.held_out import pieces_of
from local_distill.models.comparison import Comparison
from local_distill.prompts import Message, RawPrompt, Renderer
from local_distill.prompts.control_tokens import ControlTokens
from local_distill.runs.evaluations import Piece
from local_distill.runs.jsonl import to_json
from local_distill.wording import clean, counted, number

Finish = Literal["stop", "length", "interrupted"]
TRANSCRIPTS = (".jsonl", ".md")
"""How the names of files may end into which a conversation is written: JSON lines for programs, Markdown for people."""


@dataclass(frozen=True)
class ChatAnswer:
    """A model answered this, whole or as far as it came.

    text: without special tokens. tokens: their number. reverse_kl: mean nats a token, None where nobody judged;
    pieces: then its tokens one by one, special ones included.
    """

    text: str
    tokens: int
    finish: Finish
    reverse_kl: float | None = None
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A question was answered. teacher: the teacher's own answer to the same conversation."""

    question: str
    student: ChatAnswer
    teacher: ChatAnswer | None = None


@dataclass(frozen=True)
class Speech:
    """A conversation becomes tokens in this way. date: on which it began, for a clock in it; the rest: see Renderer."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    fallback_template: str | None = None
    vocab_size: int | None = None
    keep_control_tokens: bool = False
    date: datetime = field(default_factory=datetime.now)

    def note_on(self, question: str) -> str:
        """Return what to say of control tokens that are spelled in a question, or nothing."""
        typed = [] if self.keep_control_tokens else ControlTokens(self.tokenizer).typed_in(question)
        names = " ".join(dict.fromkeys(typed))
        return f"{names}: ordinary text here, unless --keep_control_tokens is given" if typed else ""

    def renderer(self, system_prompt: str | None) -> Renderer:
        """Make the renderer. Raises UserError where a system prompt needs a chat template and there is none."""
        return Renderer(
            self.tokenizer,
            system_prompt=system_prompt,
            template_kwargs=self.template_kwargs,
            fallback_template=self.fallback_template,
            vocab_size=self.vocab_size,
            keep_control_tokens=self.keep_control_tokens,
            date=self.date,
        )


@dataclass(frozen=True)
class Conversation:
    """This was said so far. Without a chat template each question is continued by itself."""

    system_prompt: str | None = None
    turns: tuple[Turn, ...] = ()

    def prompt(self, question: str, speech: Speech) -> tuple[int, ...]:
        """Return token ids up to where the answer to a question begins. Raises UserError where the template refuses."""
        renderer = speech.renderer(self.system_prompt)
        messages = [
            Message(role=role, content=text)
            for turn in (self.turns if renderer.uses_template else ())
            for role, text in (("user", turn.question), ("assistant", turn.student.text))
        ]
        return renderer.render(RawPrompt((*messages, Message(role="user", content=question)), "this conversation"))


def finished_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], finish: Finish, text: str
) -> ChatAnswer:
    """Join the tokens of an answer, for people to read. text: of all of them."""
    judged = [token.compared for token in tokens if token.compared is not None]
    if not judged:
        return ChatAnswer(text, len(tokens), finish)
    compared = Comparison(*(torch.cat(column) for column in zip(*judged, strict=True)))
    pieces = pieces_of(tokenizer, [token.id for token in tokens], compared)
    return ChatAnswer(text, len(tokens), finish, float(compared.reverse_kl.mean()), pieces)


def save_transcript(conversation: Conversation, path: Path) -> None:
    """Write a conversation, one message a line or under headings, by the file's ending.

    Raises UserError for another ending, for a file that is there, and where it cannot be written.
    """
    if path.suffix not in TRANSCRIPTS:
        raise UserError(f"/save {path}: needs a name that ends in {' or '.join(TRANSCRIPTS)}")
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


def _record(answer: ChatAnswer) -> dict[str, Any]:
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


def _measured(answer: ChatAnswer) -> str:
    kl = "" if answer.reverse_kl is None else f", reverse KL {number(answer.reverse_kl)} nats a token"
    return f" ({counted(answer.tokens, 'token')}, ended by {answer.finish}{kl})"


def _quoted(text: str) -> str:
    """Write a block quote, in which no tag and no link of a model's takes effect."""
    lines = re.sub(r"([\\`*_\[\]<>#|!])", r"\\\1", clean(text)).split("\n")
    return "\n".join(f"> {line}".rstrip() + "  " for line in lines)
