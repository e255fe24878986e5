"""The settings of a run, complete and checked."""

from __future__ import annotations

from dataclasses import dataclass

from local_distill.config.checks import check_settings
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE, TrainFields


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainFields):
    """The settings of one run. Raises UserError when they contradict each other."""

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            rate = LORA_LEARNING_RATE if self.use_lora else FULL_LEARNING_RATE
            object.__setattr__(self, "learning_rate", rate)
        check_settings(self)
