"""The settings of a run: complete, checked, and read from a command line or YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from local_distill.config.checks import check_settings
from local_distill.config.parsing import parse
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE, TrainFields

USAGE = """\
python -m local_distill.train_on_policy_local
         --student_model MODEL --teacher_model MODEL [settings]

examples:
  python -m local_distill.train_on_policy_local \\
      --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B
  python -m local_distill.train_on_policy_local --config run.yaml --steps 200
  accelerate launch \\
      --config_file local_distill/accelerate_config_multi_gpu.yaml \\
      -m local_distill.train_on_policy_local --config run.yaml
"""
PROG = "local_distill.train_on_policy_local"
DESCRIPTION = "On-policy distillation of a student model from a teacher model."


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainFields):
    """One run is set up by these. Raises UserError when they contradict each other."""

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            rate = LORA_LEARNING_RATE if self.use_lora else FULL_LEARNING_RATE
            object.__setattr__(self, "learning_rate", rate)
        check_settings(self)


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Return the settings of a run. Raises UserError for anything that is unknown or of the wrong kind."""
    return parse(TrainConfig, argv, prog=PROG, usage=USAGE, description=DESCRIPTION)
