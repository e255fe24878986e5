"""The checkpoints in a run's folder: found, verified, compared with the settings of now. No torch in here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_distill.errors import UserError
from local_distill.runs.manifest import MANIFEST, PREFIX, STATE, changed, in_words, listed
from local_distill.runs.whole_files import expanded

MADE_IN = "made_in"
"""In the state: the working folder of the run, from which the relative paths in its settings go."""
PLACES = ("student_model", "teacher_model", "dataset", "prompts_file", "init_adapter")
"""Settings that may be a folder or a file here."""
PARTIAL = ".partial-"
DISCARDED = ".discarded-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is whole here. settings: those of the run that must be the same to go on. made_in: see MADE_IN."""

    path: Path
    step: int
    settings: dict[str, Any]
    made_in: str = "."


def last_saved(output_dir: Path) -> str:
    """Return in words, for a message, where the newest checkpoint is."""
    folders = step_folders(output_dir)
    return f"the last good checkpoint is {folders[0]}" if folders else "there is no checkpoint yet"


def find_checkpoint(output_dir: Path) -> tuple[Checkpoint, list[str]]:
    """Return the newest whole checkpoint of a run, and a note on each newer one that was passed over.

    Raises UserError when there is none.
    """
    folders = step_folders(output_dir) if output_dir.is_dir() else []
    notes: list[str] = []
    for folder in folders:
        try:
            return open_checkpoint(folder), notes
        except UserError as error:
            notes.append(str(error))
    if notes:
        newest = notes[0].removeprefix("--resume ").partition(";")[0]  # without its advice
        raise UserError(f"--resume: no checkpoint in {output_dir} is whole ({newest}); start another run")
    raise UserError(f"--resume: no checkpoint in {output_dir}; check --output_dir, or start without --resume")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder``, every byte verified. Raises UserError naming what is wrong."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"--resume {folder}: not a checkpoint, it has no {MANIFEST}; give a {PREFIX}N folder")
    try:
        expected = listed(folder)
        wrong = changed(folder, expected) if STATE in expected else [STATE]
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder, int(state["step"]), dict(state["settings"]), str(state.get(MADE_IN, ".")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"--resume {folder}: damaged, its {MANIFEST} or {STATE} cannot be read ({error})") from error
    if wrong:
        raise UserError(f"--resume {folder}: damaged, {in_words(folder, wrong)}; use an older one")
    return checkpoint


def set_aside_newer(output_dir: Path, step: int) -> list[Path]:
    """Rename the checkpoints after ``step``, which a run that goes on from there would take for its own.

    Returns their new names; nothing is deleted.
    """
    renamed = []
    for folder in step_folders(output_dir):
        if int(folder.name.removeprefix(PREFIX)) > step:
            target = folder.with_name(f"superseded-{folder.name}-{secrets.token_hex(2)}")
            renamed.append(folder.rename(target))
    return renamed


def check_same_run(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Raise UserError when a setting that makes the run what it is has changed.

    A folder or a file may be spelled in another way, and the same words may not lead to another one. Settings that
    there were not yet when the checkpoint was made are not compared.
    """
    for name, value in settings.items():
        before = checkpoint.settings.get(name, value)
        same = before == value
        if name in PLACES and isinstance(before, str) and isinstance(value, str):
            then, now = Path(checkpoint.made_in, expanded(before)), Path(expanded(value))
            if then.exists() and now.exists():
                same, before = then.samefile(now), before if before != value else str(then)
        if not same:
            raise UserError(
                f"--{name}: {value} given, but {checkpoint.path} was made with {before}; "
                "a resumed run must keep it, or start another run in another --output_dir"
            )


def step_folders(output_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, by their names alone, newest first."""
    folders = [f for f in output_dir.glob(f"{PREFIX}*") if f.is_dir() and f.name.removeprefix(PREFIX).isdecimal()]
    return sorted(folders, key=lambda f: int(f.name.removeprefix(PREFIX)), reverse=True)
