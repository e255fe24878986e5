"""What was said, and how it is rendered for the next answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from local_distill.chat.answering import Token
from local_distill.eval.held_out import pieces_of
from local_distill.models.comparison import Comparison
from local_distill.prompts import Message, RawPrompt, Renderer
from local_distill.prompts.control_tokens import ControlTokens
from local_distill.runs.evaluations import Piece

Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Answer:
    """One answer, whole or as far as it came.

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
    """A question and what was answered. teacher: the teacher's own answer to the same conversation."""

    question: str
    student: Answer
    teacher: Answer | None = None


@dataclass(frozen=True)
class Speech:
    """How a conversation becomes tokens. All but date: see Renderer; date: on which it began, for a clock in it."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    fallback_template: str | None = None
    vocab_size: int | None = None
    keep_control_tokens: bool = False
    date: datetime = field(default_factory=datetime.now)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, so that earlier turns can be told."""
        return bool(self.tokenizer.chat_template or self.fallback_template)

    def note_on(self, question: str) -> str:
        """What to say of control tokens that are spelled in a question, or nothing."""
        typed = [] if self.keep_control_tokens else ControlTokens(self.tokenizer).typed_in(question)
        names = " ".join(dict.fromkeys(typed))
        return f"{names}: ordinary text here, unless --keep_control_tokens is given" if typed else ""

    def renderer(self, system_prompt: str | None) -> Renderer:
        """Raises UserError where a system prompt needs a chat template and there is none."""
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
    """What was said so far. Without a chat template each question is continued by itself."""

    system_prompt: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self) -> list[Message]:
        """All of it as chat messages, the student's answers among them, the system prompt not."""
        pairs = (
            (Message(role="user", content=turn.question), Message(role="assistant", content=turn.student.text))
            for turn in self.turns
        )
        return [message for pair in pairs for message in pair]

    def prompt(self, question: str, speech: Speech) -> tuple[int, ...]:
        """Token ids up to where the answer to ``question`` begins. Raises UserError where the template refuses."""
        earlier = self.messages() if speech.has_template else []
        asked = (*earlier, Message(role="user", content=question))
        return speech.renderer(self.system_prompt).render(RawPrompt(asked, "this conversation"))

    def with_turn(self, turn: Turn) -> Conversation:
        """The conversation after one more turn."""
        return replace(self, turns=(*self.turns, turn))


def finished_answer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], finish: Finish, text: str) -> Answer:
    """The tokens of an answer as one, for people to read. text: of all of them."""
    judged = [token.compared for token in tokens if token.compared is not None]
    if not judged:
        return Answer(text, len(tokens), finish)
    compared = Comparison(*(torch.cat(column) for column in zip(*judged, strict=True)))
    pieces = pieces_of(tokenizer, [token.id for token in tokens], compared)
    return Answer(text, len(tokens), finish, float(compared.reverse_kl.mean()), pieces)
