"""The date that a chat template with a clock in it reads: the day on which the run began, also when it is gone on with.

Prompts that say what day it is would else be others after midnight, or in a run that is resumed a week later.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

from local_distill.config.parsing import LATEST
from local_distill.config.train_config import TrainConfig
from local_distill.runs.layout import read_settings


def with_template_date(config: TrainConfig) -> TrainConfig:
    """The settings with their --template_date. Raises UserError where the run's own settings cannot be read."""
    if config.template_date is not None:
        return config
    kept = None
    if config.resume is not None:
        folder = config.output_dir if config.resume == LATEST else Path(config.resume).expanduser().resolve().parent
        kept = read_settings(Path(folder).expanduser()).get("template_date") if folder else None
    return replace(config, template_date=str(kept or date.today()))
