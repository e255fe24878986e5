"""What somebody says they want, and the settings of a run that follow from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_distill.config.builtin import NAMED_SOURCES, is_outside
from local_distill.errors import UserError
from local_distill.models.hub import check_findable

BUILT_IN = "built-in"
SELF = "self"
MOST_TOKENS = 131_072
ADAPTER_FILE = "adapter_config.json"
FILES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")


@dataclass(frozen=True)
class Answers:
    """Five questions are answered. settings: of the models and prompts, in the flags' names. teacher: in words.
    tokens: the longest completion; None for what suits the machine."""

    settings: dict[str, Any]
    teacher: str
    tokens: int | None
    output_dir: str


def student_settings(student: str) -> dict[str, Any]:
    """Return what a hub id, a model folder or an adapter's folder says of the student. Raises UserError."""
    if not student.strip():
        raise UserError("--student_model: empty text given, needs a hub id or a local folder")
    adapter = Path(student).expanduser() / ADAPTER_FILE
    if not adapter.is_file():
        check_findable("--student_model", student)
        return {"student_model": student}
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--student_model {student}: its {ADAPTER_FILE} cannot be read; give another folder") from error
    check_findable(f"--student_model {student}: its base", str(base))
    return {"student_model": str(base), "use_lora": True, "init_adapter": student}


def teacher_settings(teacher: str, student: dict[str, Any]) -> dict[str, Any]:
    """Return what a hub id, a folder, the addresses of servers or ``self`` says of the teacher. Raises UserError."""
    if not teacher.strip():
        raise UserError("--teacher_model: empty text given, needs a hub id, a local folder, an address or self")
    if teacher == SELF:
        if "init_adapter" not in student:
            raise UserError(
                f"--teacher_model self: {student['student_model']} is a whole model and would learn from itself; "
                "give the folder of an adapter as --student_model, its base is then the teacher, or another teacher"
            )
        return {"teacher_backend": SELF}
    if teacher.startswith(("http://", "https://")):
        from local_distill.serving.endpoints import clean_urls  # it imports what speaks HTTP

        return {"teacher_url": ",".join(clean_urls(teacher.split(","), "--teacher_model"))}
    check_findable("--teacher_model", teacher)
    return {"teacher_model": teacher}


def wants_column(prompts: str) -> bool:
    """Tell whether these prompts are in a data set of which it is not known which column holds them."""
    settings = prompt_settings(prompts, "?")
    return "prompt_column" in settings


def prompt_settings(prompts: str, column: str | None) -> dict[str, Any]:
    """Return where prompts come from: built-in, a file, a data set's name or folder, a source of one's own.

    Raises UserError for a file that is not there, and for a data set without the column of its prompts.
    """
    if prompts == BUILT_IN:
        return {}
    known = prompts in NAMED_SOURCES or any(prompts == each.hub_id for each in NAMED_SOURCES.values())
    path = Path(prompts).expanduser()
    if known or (is_outside(prompts) and not path.exists()):
        return {"dataset": prompts}
    if path.is_file() and not column:
        return {"prompts_file": prompts}
    looks_like_a_path = prompts.startswith((".", "/", "~")) or prompts.count("/") > 1 or path.suffix in FILES
    if not prompts.strip() or (looks_like_a_path and not path.exists()):
        raise UserError(
            f"--prompts {prompts or '(empty)'}: no such file or folder; give a file, a data set of the hub, "
            f"{', '.join(NAMED_SOURCES)} or {BUILT_IN}"
        )
    if path.is_file():
        return {"prompts_file": prompts}
    if not column:
        raise UserError(
            f"--prompt_column: not given, needs the column of {prompts} that holds the prompts (text, or chat messages)"
        )
    return {"dataset": prompts, "prompt_column": column}


def tokens(answer: str | int) -> int:
    """Return how long completions get. Raises UserError for what is no number of tokens."""
    try:
        number = int(answer)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST_TOKENS:
        raise UserError(f"--max_new_tokens: {answer} given, needs to be a number of tokens from 1 to {MOST_TOKENS}")
    return number


def name_of(model: str) -> str:
    """Return the last part of a hub id or a path, in small letters."""
    return Path(model.rstrip("/")).name.lower() or "run"
