"""local-distill train: the documented entry under a shorter name."""

from __future__ import annotations

from local_distill.commands import Command
from local_distill.config.places import look_for_run
from local_distill.config.train_config import DESCRIPTION, TrainSettings

USAGE = """\
local-distill train --student_model MODEL --teacher_model MODEL [settings]
       local-distill train run.yaml [settings]

examples:
  local-distill train --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B \\
      --chat_template_kwargs '{"enable_thinking": false}' --prompts_file prompts.txt
  local-distill train run.yaml --dry_run                 # look first: prompts, memory, schedule
  local-distill train run.yaml --steps 200
  accelerate launch --num_processes 2 -m local_distill train run.yaml
"""


def run(settings: TrainSettings) -> int:
    """Train, or look at what would be done. Returns the exit code."""
    from local_distill.train_on_policy_local import obey

    return obey(settings)


COMMAND = Command("train", TrainSettings, run, USAGE, DESCRIPTION, first=look_for_run)
