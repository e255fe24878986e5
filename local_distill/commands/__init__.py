"""The command ``local-distill``: each of its verbs is a module of this folder, loaded when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from local_distill import __version__
from local_distill.errors import UserError
from local_distill.process.exit_codes import exit_code_of
from local_distill.process.signals import ending_on_signals

if TYPE_CHECKING:
    from local_distill.commands.command import Command

COMMANDS = {
    "train": "distil a teacher into a student on the student's own samples",
    "demo": "make a real model pair and distil it, on any machine",
    "plan": "memory of a run, part by part, before anything is loaded",
    "report": "one page about one run, or several to compare",
    "eval": "reverse KL and verified answers of a model",
    "chat": "talk to a model in the terminal, beside its teacher",
    "export": "merged weights with a model card; GGUF; the hub",
    "completion": "completion for bash, zsh or tcsh",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"local-distill {__version__}")
        return 0
    with ending_on_signals():
        return exit_code_of(lambda: load(words[0])(words[1:]))


def load(name: str) -> Command:
    """One of the COMMANDS. Raises UserError for any other name."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{name}: not a command; {hint}choose from {', '.join(COMMANDS)}")
    command: Command = importlib.import_module(f"local_distill.commands.{name}").COMMAND
    return command


def overview() -> str:
    """What ``local-distill --help`` shows."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: local-distill COMMAND …",
            "",
            "On-policy distillation of language models on your own machines.",
            "",
            *lines,
            "",
            "local-distill COMMAND --help has examples and all settings.",
        ]
    )
