"""What can be said to the program instead of the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from local_distill.chat.session import END, Session
from local_distill.errors import UserError


@dataclass(frozen=True)
class SlashCommand:
    """takes: what may follow its name. what: for /help. action: with the session and what followed."""

    takes: str
    what: str
    action: Callable[[Session, str], None]

    def __call__(self, session: Session, given: str) -> None:
        """Do it."""
        self.action(session, given)


COMMANDS = {
    "/help": SlashCommand("", "this", lambda session, _: session.help(overview())),
    "/reset": SlashCommand("", "forget the conversation", lambda session, _: session.reset()),
    "/system": SlashCommand("TEXT", "another system prompt; none without TEXT", Session.set_system_prompt),
    "/temperature": SlashCommand("X", "another temperature", Session.set_temperature),
    "/both": SlashCommand("", "the teacher answers too, or no longer", lambda session, _: session.toggle_both()),
    "/why": SlashCommand("", "where the teacher disagreed most, and its choices", lambda session, _: session.why()),
    "/save": SlashCommand("FILE", "the conversation as .jsonl or .md", Session.save),
}


def command_for(name: str) -> SlashCommand:
    """Raises UserError for a name that is not known."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{name}: no such command; {hint}/help lists them")
    return COMMANDS[name]


def overview() -> str:
    """What /help shows."""
    rows = [(f"{name} {command.takes}".strip(), command.what) for name, command in COMMANDS.items()]
    rows += [(END, "leave; so does Ctrl-D"), ("Ctrl-C", "stop the answer")]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {what}" for name, what in rows)
