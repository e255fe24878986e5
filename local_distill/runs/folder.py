"""The folder of a run: a new one, or the one that a run goes on in; kept from others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from local_distill.errors import UserError
from local_distill.runs.checkpoints import (
    Checkpoint,
    check_same_run,
    find_checkpoint,
    open_checkpoint,
    set_aside_newer,
)
from local_distill.runs.claim import LOCK, claimed
from local_distill.runs.layout import check_kinds
from local_distill.runs.manifest import MANIFEST, PREFIX
from local_distill.runs.whole_files import expanded

LATEST = "latest"
"""What ``--resume`` means when no folder follows it."""
RUNS = Path("runs")
"""Where runs are whose ``--output_dir`` is not given."""


@dataclass(frozen=True)
class RunFolder:
    """A folder is this run's alone.

    checkpoint: what it goes on from, None for a new run; manifest: the checksums of that, as text. notes: for people.
    """

    path: Path
    checkpoint: Checkpoint | None = None
    manifest: str = ""
    notes: tuple[str, ...] = ()

    @property
    def first_step(self) -> int:
        """Return the number of steps done before."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def kept_here(self) -> bool:
        """Return whether what it goes on from is in this folder, not in another run's."""
        return self.checkpoint is not None and self.checkpoint.path.resolve().parent == self.path.resolve()


def open_run_folder(
    output_dir: str | None, resume: str | None, settings: dict[str, Any], steps: int, holding: ExitStack | None
) -> RunFolder:
    """Make the folder of a new run, or find the checkpoint to go on from.

    settings: those that must not change. steps: how many are asked for, those that are done included.
    holding: keeps the folder from other runs until it is closed; None to look only: nothing is made or changed.
    Raises UserError when another run is in the folder, or something else, when it cannot be written, or has nothing to
    resume.
    """
    given = None if output_dir is None else Path(expanded(output_dir))
    if resume is None:
        if given is None:
            given = RUNS / "<date-time>" if holding is None else _make_dated_run(holding)
        _claim_new(given, holding)
        return RunFolder(given)
    notes: list[str] = []
    if resume != LATEST:
        folder, checkpoint = _folder_of_step(Path(expanded(resume)), given, holding)
    elif given is None:
        raise UserError("--resume: which run? give its folder as --output_dir, or a step folder after --resume")
    else:
        if given.is_dir():
            _claim(given, holding)
        folder, (checkpoint, notes) = given, find_checkpoint(given)
    check_same_run(checkpoint, settings)
    check_kinds(folder)
    if checkpoint.step > steps:
        raise UserError(
            f"--steps: {steps} given, but {folder} has already done {checkpoint.step}; give at least as many"
        )
    newer = [] if holding is None else set_aside_newer(folder, checkpoint.step)
    renamed = [f"newer checkpoint kept as {path}" for path in newer]
    manifest = (checkpoint.path / MANIFEST).read_text(encoding="utf-8")
    return RunFolder(folder, checkpoint, manifest, (*notes, f"going on from {checkpoint.path}", *renamed))


def _folder_of_step(step: Path, given: Path | None, holding: ExitStack | None) -> tuple[Path, Checkpoint]:
    """Return where a run goes on from a step that the user named, in its own folder or the given one."""
    if not step.is_dir():
        raise UserError(f"--resume {step}: no such folder; give a {PREFIX}N folder, or --resume alone")
    if any(step.glob(f"{PREFIX}*")):
        raise UserError(
            f"--resume {step}: a run's folder, needs one of the {PREFIX}N folders in it; "
            f"or give --output_dir {step} --resume, which takes the newest"
        )
    home = step.resolve().parent
    folder = given or home
    if folder.resolve() == home:
        _claim(folder, holding)
    else:
        _claim_new(folder, holding)  # another run's checkpoints and records would be taken for this one's
    return folder, open_checkpoint(step)


def _claim_new(folder: Path, holding: ExitStack | None) -> None:
    """Claim the folder, and raise UserError unless it is empty."""
    _claim(folder, holding)
    if folder.is_dir():
        _check_empty(folder)


def check_new(folder: Path) -> None:
    """Raise UserError where the folder of a new run cannot be this one; one that is in use is left to who claims it."""
    with suppress(OSError):  # which whoever claims it will say
        if folder.is_dir() and not (folder / LOCK).exists():
            _check_empty(folder)


def _check_empty(folder: Path) -> None:
    if any(each.name != LOCK for each in folder.iterdir()):
        remedy = "add --resume to go on with it, or choose another"
        if not any(folder.glob(f"{PREFIX}*")):
            remedy = "choose another, or empty it (it holds no checkpoint to --resume from)"
        raise UserError(f"--output_dir {folder}: is not empty; {remedy}")


def _claim(folder: Path, holding: ExitStack | None) -> None:
    """Raise UserError unless the folder can be made and written, and no other run is in it."""
    if holding is None:
        there = existing(folder)
        if not (there.is_dir() and os.access(there, os.W_OK)):
            what = "cannot be written" if there.is_dir() else "a file, needs a folder"
            raise UserError(f"--output_dir {folder}: {what}; choose another")
        return
    _remove_if_empty(holding, folder)
    with _writable(folder):
        holding.enter_context(claimed(folder / LOCK, f"--output_dir {folder}"))


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that there is."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _make_dated_run(holding: ExitStack) -> Path:
    with _writable(RUNS):
        _remove_if_empty(holding, RUNS)
        folder = make_dated_folder(RUNS)
        holding.callback(_remove, [folder])
        return folder


def _remove_if_empty(holding: ExitStack, folder: Path) -> None:
    """Let a run that is refused leave no folder that it made: what is missing now is removed at the end, if empty."""
    with suppress(OSError):  # of a path that cannot be, which is told of where it is made
        holding.callback(_remove, [each for each in (folder, *folder.parents) if not each.exists()])


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it has a run in it, or was never made
            folder.rmdir()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Raise UserError where the folder cannot be made or written, here or in the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield
    except FileExistsError as error:
        raise UserError(f"--output_dir {folder}: a file, needs a folder; choose another") from error
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror}); choose another") from error


def make_dated_folder(parent: Path) -> Path:
    """Make ``parent/2026-11-24-161500``; with -2 behind it, or -3 …, where that second has one already.

    Raises OSError where it cannot be made.
    """
    folder = parent / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    name, number = folder.name, 1
    while True:
        try:
            folder.mkdir()  # at once, so that of two processes one alone has it
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{name}-{number}"


def check_checkpoint_is_here(run: RunFolder) -> None:
    """Raise UserError where this machine does not see the checkpoint that the first one found."""
    if run.checkpoint is None:
        return
    path = run.checkpoint.path
    try:
        same = (path / MANIFEST).read_text(encoding="utf-8") == run.manifest
    except OSError as error:
        raise UserError(
            f"--resume {path}: not on every machine ({error.strerror}); --output_dir must be on a disk that all "
            "machines share, or be copied to the same place on each"
        ) from error
    if not same:
        raise UserError(f"--resume {path}: another checkpoint than on the first machine; copy that one over it")
