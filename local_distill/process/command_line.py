"""How this process was started, in the words that somebody typed: for commands that can be pasted into the same shell.

Imported before torch is; so nothing heavy is imported here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

PACKAGE = "local_distill"
COMMAND = "local-distill"
ENTRY = f"{PACKAGE}.train_on_policy_local"
"""The module that trains without a verb."""
SCRIPT = "train_on_policy_local"
MODULE = ("-m", "--module")


@dataclass(frozen=True)
class Started:
    """A program was started so.

    before: the words before it: of Python, or of a launcher. program: the command, or -m and a module.
    """

    before: tuple[str, ...]
    program: tuple[str, ...]

    def again(self, verb: str, *words: str) -> str:
        """Return the line that starts a verb of ``local-distill`` in this way."""
        if not self.trains_alone:
            return shlex.join((*self.before, *self.program, verb, *words))
        if verb == "train":
            return shlex.join((*self.before, *self.program, *words))
        return shlex.join((*self.before, "-m", PACKAGE, verb, *words))

    @property
    def trains_alone(self) -> bool:
        """Return whether the program knows no verbs."""
        return self.program[-1] == ENTRY or Path(self.program[-1]).stem == SCRIPT


def to_resume(settings: Path) -> str:
    """Return the line that goes on with the run whose settings are in this file, started as this one was."""
    return _as_launched(_as_started()).again("train", "--config", str(settings), "--resume")


def to_run(verb: str, *words: str) -> str:
    """Return the line that starts another verb: ``local-distill`` where a shell finds it, else ``python -m``."""
    started, found = _as_started(), shutil.which(COMMAND)
    if found and Path(found).parent == Path(sys.executable).parent:  # of this environment, not of another one
        started = Started((), (COMMAND,))
    return replace(started, before=started.before[:1]).again(verb, *words)


def _as_started() -> Started:
    """Return how this process was started by itself, without a launcher; a guess in a program of somebody else's."""
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if len(words) < 2 or sys.orig_argv[len(words) :] != sys.argv[1:]:
        words = []
    if words[-2:-1] == ["-m"] and words[-1] in (PACKAGE, ENTRY):
        return Started((_spelled(words[0]), *words[1:-2]), ("-m", words[-1]))
    if words and Path(words[-1]).stem == COMMAND:  # a script whose first line names the interpreter
        return Started((), (_spelled(words[-1]),))
    if words and Path(words[-1]).stem == SCRIPT:
        return Started((_spelled(words[0]), *words[1:-1]), (words[-1],))
    return Started((_spelled(sys.executable),), ("-m", PACKAGE))


def _as_launched(started: Started) -> Started:
    """Return how the launcher that started this process was started, if there is one: its command line ends as ours."""
    own = sys.argv[1:]
    launched = started
    for parent in _ancestors():
        *before, last = parent[: len(parent) - len(own)] or ("",)
        if not before or parent[len(before) + 1 :] != own:
            break
        if before[-1] in MODULE and last == started.program[-1]:
            launched = Started(_typed(before[:-1]), (before[-1], last))
        elif Path(last).stem in (Path(started.program[-1]).stem, SCRIPT):
            launched = Started(_typed(before), (last,))
        else:
            break
    return launched


def _ancestors() -> list[list[str]]:
    """Return the command lines of the processes that this one was started by, the nearest first."""
    try:
        return [each.cmdline() for each in psutil.Process().parents()]
    except psutil.Error:
        return []


def _typed(words: Sequence[str]) -> tuple[str, ...]:
    """Return a launcher's words as they were typed: the kernel puts the interpreter before a script."""
    if len(words) > 1 and Path(words[0]).name.startswith("python") and Path(words[1]).is_file():
        words = words[1:] if os.access(words[1], os.X_OK) else words
    return (_spelled(words[0]), *words[1:]) if words else ()


def _spelled(program: str) -> str:
    """Return the shortest spelling of a program that a shell here finds: its name, or its path from here."""
    path = Path(program)
    if path.name == program:
        return program
    for name in (path.name, "python") if path.name.startswith("python") else (path.name,):
        found = shutil.which(name)
        if found and Path(found).absolute() == path.absolute():
            return name
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
        return str(path) if len(path.parts) > 1 else f"{os.curdir}{os.sep}{path}"
    return program
