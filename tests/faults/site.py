"""Where the faults happen: two tiny models, the settings of a run, and the run that nothing happened to."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.processes import Command, Ended, Service
from tests.faults.tally import Tally
from tests.launching import metrics, student_and_teacher

STEPS = 6
RUN = [
    "--batch_size", "3", "--group_size", "2", "--grad_accum", "2", "--max_new_tokens", "12",
    "--max_prompt_tokens", "90", "--learning_rate", "1e-3", "--eval_every", "2", "--eval_prompts", "3",
    "--save_every", "1",
]  # fmt: skip


@dataclass
class Site:
    """folder: for everything. rng: of this part alone, so that parts do not change each other's faults."""

    folder: Path
    models: list[str]
    rng: random.Random
    tally: Tally
    reference: Path
    seconds: float

    def new(self) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "run"

    def train(self, run: Path, *more: str, steps: int = STEPS, **limits: int) -> Command:
        """A run into ``run``, begun."""
        words = ["train", *self.models, *RUN, "--steps", str(steps), "--output_dir", str(run), *more]
        return Command(words, run.parent, self.folder, **limits)

    def command(self, run: Path, *words: str) -> Ended:
        """Any other command on a run, ended."""
        return Command(list(words), run.parent, self.folder).wait()

    def is_the_reference(self, run: Path) -> bool:
        """Whether a run ended as the one that nothing happened to, bit for bit."""
        files = [f"step-{STEPS}/model.safetensors", f"step-{STEPS}/trainer/optimizer.safetensors", "completions.jsonl"]
        same = all(
            (run / name).exists() and (run / name).read_bytes() == (self.reference / name).read_bytes()
            for name in files
        )
        return same and (run / "metrics.jsonl").exists() and metrics(run) == metrics(self.reference)

    def goes_on(self, run: Path, row: str) -> None:
        """Resume a run after a fault, or begin it anew where nothing was saved; count what came of it."""
        saved = newest(run)
        if saved == 0:
            shutil.rmtree(run, ignore_errors=True)
        ended = self.train(run, *(["--resume"] if saved else [])).wait()
        if ended.code != 0:
            self.tally.add(row, ended.err[-900:], tracebacks=ended.tracebacks, otherwise=1)
            return
        found = re.search(r"going on from .*step-(\d+)", ended.out)
        lost = max(0, saved - int(found[1])) if found else saved
        differs = not self.is_the_reference(run)
        note = f"{run}: {lost} lost, differs {differs}"
        self.tally.add(row, note, went_on=1, tracebacks=ended.tracebacks, steps_lost=lost, mismatches=differs)
        shutil.rmtree(run.parent)


def newest(run: Path) -> int:
    """The last step that was saved; 0 where none was."""
    return max((int(f.name.removeprefix("step-")) for f in run.glob("step-*")), default=0)


def open_site(folder: Path, seed: int, tally: Tally) -> Site:
    """Make the models and the reference."""

    def make() -> str:
        return " ".join(student_and_teacher(folder / "models"))

    with Service(make, folder) as made:
        models = made.url.split()
    site = Site(folder, models, random.Random(seed), tally, folder / "reference" / "run", 0.0)
    began = time.monotonic()
    ended = site.train(site.reference).wait()
    assert ended.code == 0, ended.err
    site.seconds = time.monotonic() - began
    return site
