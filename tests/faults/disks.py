"""Disks that are full: a real one of a few megabytes where this process may mount it, else a limit on files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.ends import while_recording, while_saving
from tests.faults.site import Site, newest

FULL, LIMITED = 8, 8
SIZE = "6m"


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at ``folder``; False where there can be none."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disks(site: Site) -> None:
    """The disk becomes full while the run goes on: told with the last checkpoint; with room again, it goes on."""
    for number in range(FULL):
        run = site.new()
        with small_disk(run.parent) as made:
            if not made:
                site.tally.notes.append("disk full: SKIPPED, no file system can be mounted here")
                return
            command = site.train(run, "--keep_checkpoints", "1")
            while command.running() and not newest(run):
                time.sleep(0.001)
            moment = (while_recording, while_saving)[number % 2](site, run)
            while command.running() and not moment():
                time.sleep(0.0005)
            filler = run.parent / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            ended = command.wait()
            filler.unlink()
            told = ended.in_one_line and "; the last good checkpoint is " in ended.err
            site.tally.add(
                "disk full", f"{ended.code} {ended.err[-900:]}", faults=1, one_line=told, tracebacks=ended.tracebacks,
                otherwise=not told and ended.code != 0,
            )  # fmt: skip
            if any(run.glob(".partial-*")):
                site.tally.add("disk full", f"{run}: half a checkpoint was left behind", otherwise=1)
            _finish(site, run)


def _finish(site: Site, run: Path) -> None:
    """With one checkpoint kept, as the run was started."""
    ended = site.train(run, "--keep_checkpoints", "1", "--resume").wait()
    differs = ended.code != 0 or not site.is_the_reference(run)
    site.tally.add(
        "disk full", ended.err[-900:], went_on=ended.code == 0, tracebacks=ended.tracebacks, mismatches=differs
    )


def limited_files(site: Site) -> None:
    """Files that may not become larger than so many bytes, whichever file is the first to need more."""
    row = "files too large for a limit"
    for _ in range(LIMITED):
        run = site.new()
        most = int(2 ** site.rng.uniform(8.0, 17.0))
        ended = site.train(run, steps=2, most_bytes=most).wait()
        note = f"{most} bytes: {ended.code} {ended.err[-900:]}"
        right = ended.in_one_line or ended.code == 0
        site.tally.add(
            row, note, faults=1, one_line=ended.in_one_line, went_on=ended.code == 0, tracebacks=ended.tracebacks,
            otherwise=not right,
        )  # fmt: skip
