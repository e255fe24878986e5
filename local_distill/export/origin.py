"""Where a model comes from: what a run left behind that its model card tells."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from local_distill.config.builtin import NAMED_SOURCES, nameless_teacher
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import recorded_fields
from local_distill.errors import UserError
from local_distill.models.trained import Trained
from local_distill.passwords import command_line
from local_distill.prompts import source_in_words
from local_distill.prompts.data_sets import HUB_ID
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.layout import COMPLETIONS_FILE, ENVIRONMENT_FILE, METRICS_FILE, read_settings, read_starts
from local_distill.runs.records import read_evaluations, training_totals

NOT_TOLD = ("output_dir", "resume", "wandb_project", "wandb_name", "wandb_mode", "trackers", "profile")
"""Settings that say nothing of the model."""


@dataclass(frozen=True)
class Origin:
    """How a model came to be, as far as its run tells.

    settings: of the run, {} for a model that was not trained here. evaluations: up to the exported step, oldest
    first. tokens, seconds: trained on and spent by the whole run. packages: name → version.
    base: what it was made from, a hub id or the name of a folder. adapter: whether an adapter was merged.
    """

    base: str
    adapter: bool
    step: int | None
    settings: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    tokens: int
    seconds: float
    packages: dict[str, str]

    @property
    def teacher(self) -> str:
        """Tell who was learned from, in words; empty where it is not known."""
        served = "a served model" if self.settings.get("teacher_url") else ""
        nameless = nameless_teacher(self.settings.get("teacher_backend"))
        return nameless or public(self.settings.get("teacher_model") or served)

    @property
    def data(self) -> str:
        """Tell where the prompts came from, in words; empty where it is not known."""
        return source_in_words(recorded_fields(self.settings)) if self.settings else ""

    @property
    def hub_data_set(self) -> str | None:
        """Return the hub id of the data set, where it has one."""
        recorded = recorded_fields(self.settings)
        known = NAMED_SOURCES.get(recorded.prompts_kind)
        return (known and known.hub_id) or hub_id(recorded.dataset)

    @property
    def command(self) -> str:
        """Return the command that trains it again, without passwords and keys of URLs; empty where it is not known."""
        defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
        words = []
        for name, value in self.settings.items():
            if name in NOT_TOLD or value == defaults.get(name):
                continue
            switch = f"--{name}" if value else f"--no-{name}"
            words.append(switch if isinstance(value, bool) else f"--{name}={public(value)}")
        return command_line(["local-distill", "train", *words]) if self.settings else ""


def public(value: object) -> str:
    """Write a setting as everybody may read it: of a path through the owner's own folders, its last name."""
    text = str(value)
    return Path(text).name if text.startswith(("/", "~")) or Path(text).is_absolute() else text


def hub_id(name: str | None) -> str | None:
    """Return ``name`` where it can be a hub id (owner/name) and is no folder here."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def origin_of(trained: Trained) -> Origin:
    """Read everything that is there; what is not is left out. Raises UserError for a file that is damaged."""
    run, step = trained.run, trained.step
    settings = read_settings(run) if run else {}
    evaluations: list[Evaluation] = []
    tokens, seconds = 0, 0.0
    if run and (run / COMPLETIONS_FILE).exists():
        evaluations = [each for each in read_evaluations(run / COMPLETIONS_FILE) if step is None or each.step <= step]
    if run and (run / METRICS_FILE).exists():
        tokens, seconds = training_totals(run / METRICS_FILE)
    packages = _packages(run) if run else {}
    base = public(settings.get("student_model") or trained.files.path)
    return Origin(base, trained.adapter is not None, step, settings, tuple(evaluations), tokens, seconds, packages)


def _packages(run: Path) -> dict[str, str]:
    """Return what it ran with when it was last started; none where it left no word of that."""
    path = run / ENVIRONMENT_FILE
    if not path.exists():
        return {}
    starts = read_starts(run)
    packages = starts[-1].get("packages") if starts else None
    if not isinstance(packages, dict):
        raise UserError(f"{path}: names no packages; mend or remove it")
    return packages
