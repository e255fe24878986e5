"""Every mistake of tests/mistakes.py in a process of its own: one line, exit code 2."""

from __future__ import annotations

import shlex
import shutil

from tests.faults.processes import Command
from tests.faults.site import Site
from tests.mistakes import ALL, SMALL, write


def mistakes(site: Site) -> None:
    """See above; the models that they name are the two tiny ones, and one with another tokenizer."""
    student, teacher = site.models[1], site.models[3]
    for name, mistake in ALL.items():
        folder = site.new()
        folder.mkdir(parents=True)
        write(folder, mistake.files)
        if mistake.broken:
            shutil.copytree(student, folder / "broken")
            write(folder / "broken", mistake.broken)
        if "{other_tokenizer}" in mistake.argv:
            continue
        words = ["train", "--student_model", student, "--teacher_model", teacher]
        words += [word.format(student=student, teacher=teacher) if word.startswith("{s") else word
                  for word in shlex.split(f"{SMALL} {mistake.argv}")]  # fmt: skip
        ended = Command(words, folder, site.folder).wait()
        told = ended.in_one_line and all(part in ended.err for part in mistake.says)
        site.tally.add(
            "bad input", f"{name}: {ended.code} {ended.err[-600:]}", faults=1, one_line=told,
            tracebacks=ended.tracebacks, otherwise=not told,
        )  # fmt: skip
        shutil.rmtree(folder.parent)
