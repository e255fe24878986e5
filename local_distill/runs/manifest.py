"""manifest.json: size and SHA-256 of every other file of a checkpoint, for whoever reads one of them later."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_distill.errors import UserError

PREFIX = "step-"
"""What the names of checkpoints begin with."""
MANIFEST = "manifest.json"
TRAINER = "trainer"
STATE = f"{TRAINER}/state.json"
MAY_BE_EDITED = "generation_config.json"
"""How a model is used, not what it is: people set their own sampling and stop tokens there."""
LONG = 2e9
"""Bytes that take seconds to read, so that something is said first."""

Fingerprints = dict[str, dict[str, Any]]


def seal(folder: Path) -> None:
    """Write the manifest of what is in a folder, and everything down to the disk."""
    names = [f.relative_to(folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]
    files = _fingerprints(folder, [name for name in names if name != MANIFEST])
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def listed(folder: Path) -> Fingerprints:
    """Return what the manifest says. Raises ValueError, KeyError, TypeError or OSError where none can be read."""
    files: Fingerprints = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    return files


def changed(folder: Path, expected: Fingerprints) -> list[str]:
    """Return the names of these files that are not in the folder as they were written."""
    absent = sorted(name for name in expected if not (folder / name).is_file())
    found = _fingerprints(folder, [name for name in expected if name not in absent])
    return sorted([*absent, *(name for name in found if found[name] != expected[name])])


def in_words(folder: Path, wrong: Sequence[str]) -> str:
    """Say what is wrong with the files that ``changed`` found: that they are missing, or are not what was written."""
    missing = [name for name in wrong if not (folder / name).is_file()]
    other = [name for name in wrong if name not in missing]
    parts = []
    if missing:
        parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if other:
        parts.append(f"{', '.join(other)} {'is' if len(other) == 1 else 'are'} not what was written")
    return " and ".join(parts)


def another_step(folder: Path) -> str:
    """Say which step of a run may be used instead of the one in ``folder``: the newest of the others."""
    named = {each.name.removeprefix(PREFIX): each for each in folder.parent.glob(f"{PREFIX}*") if each != folder}
    steps = {int(name): each for name, each in named.items() if name.isdecimal() and (each / MANIFEST).is_file()}
    return f"use {steps[max(steps)]}" if steps else "no other step of this run is kept"


def check_as_written(flag: str, folder: Path) -> None:
    """Raise UserError naming ``flag`` where a model that a run wrote is not what was written.

    The optimizer's state is left aside: who reads the model does not need it, and may have deleted it. An edited
    generation_config.json is spoken of. Folders that are nobody's checkpoint have no manifest, and need none.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process a machine is enough
        return
    ours = (folder / STATE).exists()
    try:
        files = listed(folder)
        expected = {name: files[name] for name in files if not name.startswith(f"{TRAINER}/")}
        expected |= {STATE: files[STATE]} if ours else {}
        size = sum(each["bytes"] for each in expected.values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if not ours:
            return
        raise UserError(f"{flag} {folder}: its {MANIFEST} cannot be read ({error}); {another_step(folder)}") from error
    if size > LONG:
        print(f"checking {size / 1e9:.0f} GB in {folder} against its {MANIFEST}", file=sys.stderr, flush=True)
    wrong = changed(folder, expected)
    if wrong == [MAY_BE_EDITED] and _is_json(folder / MAY_BE_EDITED):
        print(f"{flag} {folder}: {MAY_BE_EDITED} was changed since it was written", file=sys.stderr, flush=True)
    elif wrong:
        raise UserError(
            f"{flag} {folder}: damaged, {in_words(folder, wrong)}; {another_step(folder)}, or, where the "
            f"change is meant, a copy without {MANIFEST} and {TRAINER}"
        )


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (ValueError, OSError):
        return False


def _fingerprints(folder: Path, names: Sequence[str]) -> Fingerprints:
    def fingerprint(name: str) -> dict[str, Any]:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return {"bytes": (folder / name).stat().st_size, "sha256": digest.hexdigest()}

    with ThreadPoolExecutor() as pool:  # hashing is the slow part
        return dict(zip(names, pool.map(fingerprint, names), strict=True))


def sync(path: Path) -> None:
    """Write a file, or a folder's list of names, down to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory to sync it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
