"""Runs of earlier versions, which recorded other defaults than there are now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local_distill.config.train_config import TrainConfig
from local_distill.runs.folder import LATEST
from local_distill.runs.layout import read_settings


def with_loss_of_before(config: TrainConfig) -> TrainConfig:
    """Return the settings of a resumed run with the objective that it began with, where the launch names none.

    That is its loss, and with it the temperature and the top-p of its samples where these are the defaults. Raises
    UserError where the run's own settings cannot be read.
    """
    if config.resume is None or config.loss != "auto":
        return config
    folder = config.output_dir if config.resume == LATEST else Path(config.resume).expanduser().resolve().parent
    before = read_settings(Path(folder).expanduser()) if folder else {}
    loss = before.get("loss")
    if not isinstance(loss, str) or loss == "auto":  # a record that was cut off in the middle may have no value there
        return config
    left_alone = [name for name in ("temperature", "top_p") if getattr(config, name) == getattr(TrainConfig, name)]
    kept = {name: before[name] for name in left_alone if isinstance(before.get(name), float | int)}
    return replace(config, loss=loss, **kept)
