"""Command line and YAML → TrainConfig."""

from __future__ import annotations

from collections.abc import Sequence

from local_distill.config.parsing import parse
from local_distill.config.train_config import TrainConfig

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


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """The settings of a run. Raises UserError for anything that is unknown or of the wrong kind."""
    return parse(TrainConfig, argv, prog=PROG, usage=USAGE, description=DESCRIPTION)
