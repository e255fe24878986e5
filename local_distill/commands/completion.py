"""local-distill completion: a script for the shell."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from local_distill.commands import COMMANDS, Command, load
from local_distill.config.parsing import argument
from local_distill.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")

USAGE = """\
local-distill completion {bash,zsh,tcsh}

examples:
  source <(local-distill completion bash)                            # in this shell
  local-distill completion bash > ~/.local/share/bash-completion/completions/local-distill
  local-distill completion zsh > ~/.zfunc/_local-distill             # a folder of your fpath
"""


@dataclass(frozen=True, kw_only=True)
class CompletionSettings:
    """``local-distill completion`` has these settings. Raises UserError for a shell that is not known."""

    shell: str = argument("bash, zsh or tcsh.")

    def __post_init__(self) -> None:
        if self.shell not in SHELLS:
            raise UserError(f"{self.shell}: not a shell that can be completed for; choose from {', '.join(SHELLS)}")


def run(settings: CompletionSettings) -> int:
    """Print the script, made from all commands with all their flags."""
    import shtab

    parser = argparse.ArgumentParser(prog="local-distill")
    commands = parser.add_subparsers()
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, parents=[load(name).parser()])
    print(shtab.complete(parser, shell=settings.shell))
    return 0


COMMAND = Command("completion", CompletionSettings, run, USAGE, "Completion of commands and flags for a shell.")
