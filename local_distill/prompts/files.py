"""Prompts that somebody wrote down: a text file, a JSON Lines file, and the built-in ones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from local_distill.errors import UserError
from local_distill.prompts.raw import RawPrompt, RawPrompts, one_line, read_answer, read_messages

JSON_SUFFIXES = (".jsonl", ".json")
BUILTIN = "builtin.txt"


def builtin_prompts() -> RawPrompts:
    """The prompts that come with the package."""
    text = resources.files(__package__).joinpath(BUILTIN).read_text(encoding="utf-8")
    return RawPrompts(_text_prompts(text, BUILTIN), name="the built-in prompts")


def read_prompts_file(path: str) -> RawPrompts:
    """One prompt a line; in a ``.jsonl`` file one object a line, with ``prompt`` or ``messages``.

    Raises UserError, with the line where there is one, when the file cannot be read as that.
    """
    where = f"--prompts_file {path}"
    file = Path(path).expanduser()
    if file.suffix.lower() in JSON_SUFFIXES:
        prompts = [_json_prompt(row, f"{file.name}:{n}", f"{where}: line {n}") for n, row in json_rows(file, where)]
    else:
        prompts = _text_prompts(_read_text(file, where), file.name)
    if not prompts:
        raise UserError(f"{where}: no prompt in it; write one prompt a line")
    return RawPrompts(prompts, name=path, must_fit=True)


def json_rows(file: Path, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, its JSON object) of the lines that are not blank.

    Raises UserError, beginning with ``where``, for a file that cannot be read and for a line that is something else.
    """
    for number, line in _lines(_read_text(file, where)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: line {number}: not JSON ({one_line(error)}); write one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: line {number}: {type(row).__name__} given, needs a JSON object such as {{"prompt": "…"}}'
            )
        yield number, row


def _read_text(file: Path, where: str) -> str:
    if file.is_dir():
        raise UserError(f"{where}: a folder, needs a text file; use --dataset for a data set in a folder")
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file (looked in {Path.cwd()}); check the path") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{where}: NUL byte in line {line}, not a text file in UTF-8; save it as UTF-8 text")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}: byte {error.start} (line {line}) is not UTF-8; save it as UTF-8, "
            "for example with iconv -f latin1 -t utf-8"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without surrounding whitespace) of the lines that are not blank."""
    # Not str.splitlines: it also breaks at characters, such as U+2028, that are no line end to an editor.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line.strip()


def _text_prompts(text: str, name: str) -> list[RawPrompt]:
    return [RawPrompt(read_messages(line, name), f"{name}:{number}") for number, line in _lines(text)]


def _json_prompt(row: dict[str, Any], origin: str, where: str) -> RawPrompt:
    keys = [key for key in ("prompt", "messages") if key in row]
    if len(keys) != 1:
        given = "both prompt and messages" if keys else f"keys {', '.join(row) or '(none)'}"
        raise UserError(f"{where}: {given} given, needs one of prompt (text) and messages (a list)")
    kind, needed = (str, "text") if keys == ["prompt"] else (list, "a list of chat messages")
    value = row[keys[0]]
    if not isinstance(value, kind):
        raise UserError(f"{where}: {keys[0]} is {type(value).__name__}, needs to be {needed}")
    answer = read_answer(row.get("answer"))
    if answer is None and row.get("answer") is not None:
        raise UserError(f"{where}: answer is {type(row['answer']).__name__}, needs to be text or a number")
    messages = read_messages(value, where)
    if not messages:
        raise UserError(f"{where}: {keys[0]} asks nothing; needs text, or a user message with text")
    return RawPrompt(messages, origin, answer)
