"""Folders and files that settings name are looked for at once: before torch is imported, and no hub is asked for them.

What has the form of a path is a path. The hub is asked for ``owner/name`` alone, where no folder ``owner`` is here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.runs.folder import LATEST, RUNS, check_new
from local_distill.runs.whole_files import expanded
from local_distill.wording import did_you_mean

HELD_HERE = ("local", "zero3")
"""Teachers whose model is opened here; a server's may have the name of a folder there."""


def is_path(text: str) -> bool:
    """Tell whether text has the form of a path, or lies in a folder of the working folder, so that it is no hub id."""
    first = text.partition("/")[0]
    return (
        text.startswith((".", "/", "~"))
        or text.endswith("/")
        or text.count("/") > 1
        or (first != text and (first == str(RUNS) or Path(first).is_dir()))
    )


def check_is_there(flag: str, path: str, kind: str = "model") -> None:
    """Raise UserError for what is a path, and leads to nothing. kind: of the folder that is needed."""
    path = expanded(path)
    if is_path(path) and not Path(path).expanduser().exists():
        instead = f"give a local {kind} folder or a hub id (owner/name)"
        raise UserError(f"{flag} {path}: no such folder; {did_you_mean(path)}{instead}")


def look_for_run(given: Mapping[str, Any]) -> None:
    """Refuse a run whose files are not here, or whose folder is taken, by its settings as far as they are given.

    Nothing is opened. One of several processes leaves that to the check that they make together: the others would
    wait for it. Raises UserError.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return
    fields = _fields_of(given)
    look_for_models(given)
    for flag in ("dataset_path",) if fields.dataset else ("prompts_file",):
        check_file(flag, getattr(fields, flag))
    if fields.resume is None:
        if fields.output_dir:
            check_new(Path(fields.output_dir).expanduser())
    elif fields.resume != LATEST and fields.resume.endswith((".yaml", ".yml")):
        raise UserError(f"--resume {fields.resume}: a file of settings, needs a step folder or nothing; put it first")


def look_for_models(given: Mapping[str, Any]) -> None:
    """Raise UserError for a model of a run that is a path, and not here."""
    fields = _fields_of(given)
    check_is_there("--student_model", fields.student_model)
    if not fields.teacher_url and fields.teacher_backend in ("auto", *HELD_HERE):
        _check_is_not_self(fields.teacher_model)
        check_is_there("--teacher_model", fields.teacher_model)
    if fields.init_adapter:
        check_is_there("--init_adapter", fields.init_adapter, "adapter")


def _check_is_not_self(teacher_model: str) -> None:
    """Refuse the word that other commands take for the student's own base, which is a backend here."""
    if teacher_model == "self" and not Path(teacher_model).exists():
        raise UserError(
            "--teacher_model self: the student without its adapter is a backend of train; "
            "give --teacher_backend self instead, or a local model folder or a hub id (owner/name)"
        )


def look_by_place(given: Mapping[str, Any]) -> None:
    """The same for the models of other commands, which are given by their place."""
    for name in ("models", "model", "run"):
        for path in [given[name]] if isinstance(given.get(name), str) else given.get(name, ()):
            check_is_there(name.removesuffix("s").upper(), path)
    if given.get("teacher_model") and not given.get("teacher_url"):
        check_is_there("--teacher_model", given["teacher_model"])


def _fields_of(given: Mapping[str, Any]) -> TrainFields:
    return TrainFields(**{name: value for name, value in given.items() if name in TrainFields.__dataclass_fields__})


def check_file(flag: str, path: str | None) -> None:
    """Raise UserError where a file that is given is not there."""
    if path and not Path(path).expanduser().exists():
        raise UserError(f"--{flag} {path}: no such file; {did_you_mean(path)}check the path (looked in {Path.cwd()})")
