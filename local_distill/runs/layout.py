"""The files of a run by their names, and those that say what it was: its settings, and what it ran on.

Without torch, so that a report begins at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from local_distill.errors import UserError, one_line

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
SETTINGS_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
SUMMARY_FILE = "summary.md"
SUMMARY_JSON_FILE = "summary.json"


def check_kinds(folder: Path) -> None:
    """Raise UserError when something else than a file is where the run in ``folder`` keeps one."""
    for name in (METRICS_FILE, COMPLETIONS_FILE, SETTINGS_FILE, ENVIRONMENT_FILE, SUMMARY_FILE, SUMMARY_JSON_FILE):
        path = folder / name
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file, and the run keeps one of that name; move it away")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in ``folder``; none where it left no word of them. Raises UserError."""
    path = folder / SETTINGS_FILE
    try:
        content = {} if (text := _text(path)) is None else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates that there are not; of lists in lists
        raise _unreadable(path, error) from error
    if not (isinstance(content, dict) and all(isinstance(name, str) for name in content)):
        raise UserError(f"{path}: needs to hold names and values; mend or remove it")
    for name, value in content.items():
        if isinstance(value, (dict, list, set)):
            raise UserError(f"{path}: {name} needs a single value; mend or remove it")
    return content


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return what the run in ``folder`` ran on at each of its starts; none where it left no word of that.

    Raises UserError.
    """
    path = folder / ENVIRONMENT_FILE
    text = _text(path)
    try:
        content = [] if text is None else json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not (isinstance(content, list) and all(isinstance(each, dict) for each in content)):
        raise UserError(f"{path}: not a list of JSON records; mend or remove it")
    return content


def _text(path: Path) -> str | None:
    """Return the text of a file; None where there is none."""
    if not path.exists():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read ({one_line(error, width=None)}); mend or remove it")
