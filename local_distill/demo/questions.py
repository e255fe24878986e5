"""Questions with one right answer, asked of the student before and after and of its teacher: how many are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_distill.eval.asking import ask, open_run
from local_distill.eval.eval_config import CONTAINS, EvalSettings
from local_distill.eval.output_folder import Answer
from local_distill.eval.questions_and_model import check
from local_distill.eval.scores import judge, to_record
from local_distill.monitor.terminal import open_console
from local_distill.process.isolation import quiet_libraries
from local_distill.runs.whole_files import write_whole
from local_distill.wording import markdown_table, shorten

FILE = Path(__file__).parent / "questions.jsonl"
ASKED, NEW_TOKENS, SHOWN = 40, 24, 4
WHEN = ("before", "after", "teacher")


@dataclass(frozen=True)
class Asked:
    """A question was answered by each of WHEN."""

    question: str
    reference: str
    answers: Mapping[str, Answer]

    @property
    def kind(self) -> str:
        """Return how the question begins: "What is the capital"."""
        return " ".join(self.question.split()[:4])


def ask_all(before: Path, after: Path, teacher: Path, folder: Path) -> list[Asked]:
    """Ask the first questions of FILE, greedily, in the way of ``local-distill eval``, whose files are in ``folder``.

    An answer is right when it contains the reference. Returns the questions in their order.
    """
    models = (str(before), str(after), str(teacher))
    settings = EvalSettings(
        models=models, dataset=str(FILE), limit=ASKED, answers=CONTAINS, max_new_tokens=NEW_TOKENS, output=str(folder)
    )
    with quiet_libraries(), ExitStack() as closing:
        inputs = check(settings, closing)
        run = open_run(inputs, closing)
        on_harness = ask(run)
        run.output.write_results(to_record(inputs, judge(inputs, run.output, on_harness)))
    names = dict(zip(WHEN, (subject.name for subject in inputs.subjects), strict=True))
    (task,) = inputs.tasks
    found = run.output.answers.found
    return [
        Asked(first.prompt, first.reference, {when: found[name, task.name, place, 0] for when, name in names.items()})
        for place in range(len(task.questions))
        for first in [found[names["before"], task.name, place, 0]]
    ]


def count(asked: Sequence[Asked]) -> str:
    """Return how many answers are right, in words."""
    right = {when: sum(each.answers[when].correct for each in asked) for when in WHEN}
    return (
        f"right answers: {right['before']} of {len(asked)} before, {right['after']} of {len(asked)} after; "
        f"its teacher {right['teacher']} of {len(asked)}"
    )


def show(asked: Sequence[Asked], console: Console | None = None) -> None:
    """Print some answers that came back, of different kinds, beside what they were before, and the count of all."""
    came_back = [each for each in asked if each.answers["after"].correct and not each.answers["before"].correct]
    kinds = {each.kind: each for each in reversed(came_back)}
    shown = sorted(kinds.values(), key=came_back.index)[:SHOWN]
    console = console or open_console()
    if shown:
        title = f"{len(shown)} of the {len(came_back)} answers that came back"
        table = Table(box=SIMPLE_HEAD, expand=True, title=title, title_justify="left", title_style="bold")
        for heading in ("question", *WHEN):
            table.add_column(heading, ratio=1, overflow="fold")
        for each in shown:
            table.add_row(Text(each.question), *(_answer(each.answers[when], 60) for when in WHEN))
        console.print(table)
    console.print(Text(count(asked), style="bold"))


def to_markdown(asked: Sequence[Asked]) -> str:
    """Return all questions and answers as a table, and the count."""
    rows = [(each.question, *(_answer(each.answers[when], 120).plain for when in WHEN)) for each in asked]
    table = markdown_table(("question", *WHEN), rows)
    return f"# Questions\n\n{count(asked)[0].upper()}{count(asked)[1:]}.\n\n{table}\n"


def write_page(asked: Sequence[Asked], file: Path) -> None:
    """Write ``to_markdown``. Raises RunError when it cannot be written."""
    write_whole(file, to_markdown(asked))


def _answer(answer: Answer, characters: int) -> Text:
    mark, style = ("✓", "green") if answer.correct else ("✗", "red")
    return Text(f"{mark} {shorten(' '.join(answer.completion.split()), characters, lines=1)}", style=style)
