"""local-distill init: five questions, and a commented run.yaml that fits this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from local_distill.commands import Command
from local_distill.commands.plan import PlanSettings
from local_distill.config.parsing import option, same_as
from local_distill.errors import UserError
from local_distill.monitor.working import working

if TYPE_CHECKING:
    from local_distill.first_run.answers import Answers
    from local_distill.first_run.settings import FirstRun

T = TypeVar("T")

USAGE = """\
local-distill init [--student_model MODEL] [--teacher_model MODEL] [--prompts WHERE]
                          [--max_new_tokens N] [--output_dir DIR] [--yes]
                          [--file YAML] [--overwrite] [--gpus N] [--gpu_memory GB]

examples:
  local-distill init                                     # asks five questions
  local-distill init --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B --yes
  local-distill init --gpus 2 --gpu_memory 80            # for another machine
  local-distill init --student_model runs/tuned/step-100 --teacher_model self    # repair an adapter
"""
DESCRIPTION = (
    "Asks what is to learn from what, looks at this machine, and writes a run.yaml that fits it, each setting with a "
    "comment. Nothing is downloaded but the models' configurations."
)
STUDENT, TEACHER, FILE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "run.yaml"
SHOWN = 4
"""Of the ways that do not fit, so many are named."""

_answer = partial(option, "answers")
_file = partial(option, "file and machine")


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """``local-distill init`` has these settings. Raises UserError when they contradict each other."""

    student_model: str | None = _answer(
        f"Hub id or local folder of the model to train, or the folder of an adapter. Default: {STUDENT}."
    )
    teacher_model: str | None = _answer(
        "Hub id or local folder of the model to learn from; http://host:port of a server that serves it; self: the "
        f"model that the student's adapter was put on. Default: {TEACHER}, or self for an adapter."
    )
    prompts: str | None = _answer(
        "Where prompts come from: a file, tulu3, deepmath, another data set's hub id or folder, or built-in. "
        "Default: built-in."
    )
    prompt_column: str | None = _answer("Column of a data set that holds the prompts.")
    max_new_tokens: int | None = _answer("Longest completion (tokens). Default: 512 on a GPU, 128 on a processor.")
    output_dir: str | None = _answer("Folder of the run. Default: runs/ and the student's name.")
    yes: bool = _answer("Ask nothing: take the defaults for what is not given.", False)
    file: str = _file("File to write.", FILE)
    overwrite: bool = _file("Replace the file where there is one.", False)
    gpus: int | None = same_as(PlanSettings, "gpus", group="file and machine")
    gpu_memory: float | None = same_as(PlanSettings, "gpu_memory", group="file and machine")

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise UserError(f"--gpus: {self.gpus} given, needs to be at least 1")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < 1e6:
            raise UserError(f"--gpu_memory: {self.gpu_memory:g} given, needs to be above 0 (GB of one GPU)")
        if Path(self.file).expanduser().exists() and not self.overwrite:
            raise UserError(f"--file {self.file}: is there already; give another name, or --overwrite to replace it")
        asked = ("student_model", "teacher_model", "prompts", "max_new_tokens", "output_dir")
        missing = [f"--{name}" for name in asked if getattr(self, name) is None]
        if missing and not self.yes and not sys.stdin.isatty():
            raise UserError(
                f"{missing[0]}: not given, and there is no terminal to ask in; give {', '.join(missing)}, or --yes to "
                "take the defaults"
            )


def run(settings: InitSettings) -> int:
    """Ask, plan, write the file, and say what comes next. Returns the exit code."""
    answers = _answers(settings)
    file = Path(settings.file).expanduser()
    made = _make(answers, settings, file)
    from local_distill.runs.whole_files import writing

    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(made.text, encoding="utf-8")
    print(f"{file}: {made.words}")
    print(made.verdict)
    if made.left:
        more = f" and {len(made.left) - SHOWN} ways more" if len(made.left) > SHOWN else ""
        print(f"too much for it: {'; '.join(made.left[:SHOWN])}{more}")
    if made.missing:
        print(f"\nnot installed yet:\n  pip install {' '.join(repr(each) for each in made.missing)}")
    print("\nnext:")
    for command, what in made.commands:
        print(f"  # {what}\n  {command}")
    return 0


def _make(answers: Answers, settings: InitSettings, file: Path) -> FirstRun:
    with working("looking at this machine and at both models") as show:
        from local_distill.first_run.settings import first_run
        from local_distill.plan.machine import planned_machine
        from local_distill.process.isolation import quiet_libraries

        machine = planned_machine(settings.gpus, settings.gpu_memory)
        with quiet_libraries():
            return first_run(answers, machine, file, lambda way: show(f"does it fit? {way}"))


def _answers(settings: InitSettings) -> Answers:
    """Ask what is not given, one question after the other; a wrong answer is asked for again, a wrong flag is not."""
    from local_distill.first_run import answers as given

    ask = partial(_ask, yes=settings.yes)
    student = ask("Student: the model to train (hub id or folder)", settings.student_model, STUDENT,
                  given.student_settings)  # fmt: skip
    usual = given.SELF if "init_adapter" in student else TEACHER
    named: list[str] = []

    def teacher_of(answer: str) -> dict[str, Any]:
        found = given.teacher_settings(answer, student)
        served = f"what {found['teacher_url']} serves" if "teacher_url" in found else ""
        named.append("its own base" if answer == given.SELF else served or given.name_of(answer))
        return found

    teacher = ask("Teacher: the model to learn from (hub id, folder, http://… or self)", settings.teacher_model, usual,
                  teacher_of)  # fmt: skip

    def prompts_of(answer: str) -> dict[str, Any]:
        column = settings.prompt_column
        if column is None and not settings.yes and sys.stdin.isatty() and given.wants_column(answer):
            column = _ask("  its column with the prompts", None, "prompt", str, yes=False)
        return given.prompt_settings(answer, column)

    prompts = ask("Prompts: a file, tulu3, deepmath, a data set, or built-in", settings.prompts, given.BUILT_IN,
                  prompts_of)  # fmt: skip
    length = ask("Completions: how many tokens at most (auto: what suits the machine)",
                 None if settings.max_new_tokens is None else str(settings.max_new_tokens), "auto",
                 lambda answer: None if answer == "auto" else given.tokens(answer))  # fmt: skip
    folder = ask("Folder of the run", settings.output_dir, f"runs/{given.name_of(student['student_model'])}", str)
    return given.Answers({**student, **teacher, **prompts}, named[-1], length, folder)


def _ask(question: str, given: str | None, default: str, read: Callable[[str], T], *, yes: bool) -> T:
    """Return what was answered, as ``read`` takes it; raises UserError for a flag that it refuses."""
    if given is not None or yes:
        return read(default if given is None else given)
    from rich.prompt import Prompt

    while True:
        try:
            return read(Prompt.ask(question, default=default).strip())
        except UserError as error:
            print(str(error).split(": ", 1)[-1])


COMMAND = Command("init", InitSettings, run, USAGE, DESCRIPTION)
