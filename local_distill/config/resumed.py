"""What a run that is gone on with keeps from its beginning, where the launch does not say it anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from local_distill.config.train_config import TrainConfig
from local_distill.runs.folder import LATEST
from local_distill.runs.layout import read_settings

EARLIER_BETA2 = 0.95
"""AdamW's β₂ in version 0.1."""


def as_begun(config: TrainConfig) -> TrainConfig:
    """Return the settings with the objective and the date that the run began with; of a new run, with today's date.

    Earlier versions recorded other defaults: the objective is the loss and, where these are the defaults, temperature
    and top-p. They had another β₂ of AdamW, and no setting for it. The date is what a chat template with a clock in it
    reads; else prompts that say what day it is would be others after midnight. Raises UserError where the run's own
    settings cannot be read.
    """
    before = _settings_of_before(config)
    kept: dict[str, Any] = {}
    if config.template_date is None:
        kept["template_date"] = str(before.get("template_date") or date.today())
    loss = before.get("loss")  # a record that was cut off in the middle may have no value there
    if config.loss == "auto" and isinstance(loss, str) and loss != "auto":
        kept["loss"] = loss
        for name in ("temperature", "top_p"):
            if getattr(config, name) == getattr(TrainConfig, name) and isinstance(before.get(name), float | int):
                kept[name] = before[name]
    if before and "adam_beta2" not in before and config.adam_beta2 == TrainConfig.adam_beta2:
        kept["adam_beta2"] = EARLIER_BETA2
    return replace(config, **kept)


def _settings_of_before(config: TrainConfig) -> dict[str, Any]:
    if config.resume is None:
        return {}
    folder = config.output_dir if config.resume == LATEST else Path(config.resume).expanduser().resolve().parent
    return read_settings(Path(folder).expanduser()) if folder else {}
