"""Where questions come from: a person at a terminal, or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HISTORY_LENGTH = 1000
PROMPT = "you> "


def typed_lines(completions: Sequence[str]) -> Iterator[str]:
    """What a person types, with line editing and a history over sessions, until Ctrl-D; Ctrl-C drops the line."""
    history = _line_editing(completions)
    try:
        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                print()
            except EOFError:
                print()
                return
    finally:
        _keep(history)


def piped_lines() -> Iterator[str]:
    """The lines of standard input."""
    yield from sys.stdin


def history_file() -> Path:
    """Where typed lines are kept, by the XDG convention."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "local-distill" / "chat_history"


def _line_editing(completions: Sequence[str]) -> Path | None:
    """Returns the history's file; None where Python has no readline, as on Windows, whose console edits by itself."""
    try:
        import readline
    except ImportError:
        return None

    def complete(text: str, state: int) -> str | None:
        return [*(word for word in completions if word.startswith(text)), None][state] if text else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LENGTH)
    file = history_file()
    if file.is_file():
        readline.read_history_file(file)
    return file


def _keep(history: Path | None) -> None:
    if history is None:
        return
    import readline

    history.parent.mkdir(parents=True, exist_ok=True)
    readline.write_history_file(history)
    history.chmod(0o600)  # what was asked is nobody else's business
