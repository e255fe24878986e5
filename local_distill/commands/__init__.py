"""The command ``local-distill``: each of its verbs is a module of this folder, loaded when it is asked for."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from local_distill import __version__
from local_distill.errors import UserError
from local_distill.monitor.working import working
from local_distill.process.exit_codes import exit_code_of
from local_distill.process.signals import end_on_signals, ending_on_signals

COMMANDS = {
    "train": "distil a teacher into a student on the student's own samples",
    "demo": "a model that forgot how to chat learns it again, on any machine",
    "init": "five questions, and a commented run.yaml that fits this machine",
    "doctor": "what this machine has, what is wrong with it, and what to do",
    "plan": "memory of a run, part by part, before anything is loaded",
    "watch": "the report's page, which follows runs while they go on",
    "report": "one page about one run, or several to compare",
    "eval": "reverse KL and verified answers of a model",
    "chat": "talk to a model in the terminal, beside its teacher",
    "export": "merged weights with a model card; GGUF; the hub",
    "completion": "completion for bash, zsh or tcsh",
}


Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Command(Generic[Settings]):
    """One verb of ``local-distill`` is declared by its module.

    settings: a dataclass of ``option`` and ``argument`` fields. run: takes one and returns the exit code.
    usage: how it is written, with examples, for ``--help``. description: one sentence. doing: what a terminal shows
    while its settings are checked, for which torch may be imported. first: looks at what is given before that.
    """

    name: str
    settings: type[Settings]
    run: Callable[[Settings], int]
    usage: str
    description: str
    doing: str = ""
    first: Callable[[dict[str, Any]], None] | None = None

    def __call__(self, argv: Sequence[str]) -> int:
        """Run it on the words that follow its name. Raises UserError."""
        from local_distill.config.parsing import parse  # here, so that --help lists the commands at once

        with working("" if {"-h", "--help"} & set(argv) else self.doing):
            settings = parse(self.settings, argv, **self._shown, first=self.first)
        return self.run(settings)

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its flags, for shell completion."""
        from local_distill.config.parsing import build_parser

        return build_parser(self.settings, **self._shown, add_help=False)

    @property
    def _shown(self) -> dict[str, str]:
        return {"prog": f"local-distill {self.name}", "usage": self.usage, "description": self.description}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by itself that of this process. Returns the exit code: 0, 2 for a user's mistake."""
    if argv is None:
        end_on_signals()
    words = list(sys.argv[1:] if argv is None else argv)
    with ending_on_signals():
        return exit_code_of(lambda: obey(words))


def obey(words: Sequence[str]) -> int:
    """Show the overview or the version, or run the command that is named. Raises UserError."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"local-distill {__version__}")
        return 0
    return load(words[0])(words[1:])


def load(name: str) -> Command[Any]:
    """Import one of the COMMANDS. Raises UserError for any other name."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{name}: not a command; {hint}choose from {', '.join(COMMANDS)}")
    command: Command[Any] = importlib.import_module(f"local_distill.commands.{name}").COMMAND
    return command


def overview() -> str:
    """Return what ``local-distill --help`` shows."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return f"""\
usage: local-distill COMMAND …

On-policy distillation of language models on your own machines.

{commands}

local-distill COMMAND --help has examples and all settings."""
