"""Questions with their reference answers: sets known by name, others, and files of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from local_distill.config.builtin import NAMED_SOURCES
from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.verifying import Verifier
from local_distill.process.seeding import shuffled
from local_distill.prompts import RawPrompt
from local_distill.prompts.chats import from_sharegpt, read_messages, read_tools, without_nulls
from local_distill.prompts.data_sets import HUB_ID, TOOLS_COLUMN, answer_column, has_configurations, kind_of, load_table
from local_distill.prompts.prompt_files import json_rows, read_prompts_file
from local_distill.prompts.raw import check_share_of_wrong, read_answer
from local_distill.wording import counted

QUESTION_COLUMNS = ("question", "problem", "prompt", "messages")
PLACE = "{question}"
MATH_TEMPLATE = "{question}\n\nReason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class NamedTask:
    """The home of a set of questions is known.

    dealt: its rows are what others train on; the last of the order in which training deals them come first.
    most: questions that are asked unless told otherwise, None for all.
    """

    hub_id: str
    split: str
    subset: str | None = None
    dealt: bool = False
    most: int | None = None


NAMED_TASKS = {
    "gsm8k": NamedTask("openai/gsm8k", "test", subset="main"),
    "math500": NamedTask("HuggingFaceH4/MATH-500", "test"),
    "aime24": NamedTask("Maxwell-Jia/AIME_2024", "train"),
    "aime25": NamedTask("math-ai/aime25", "test"),
    "deepmath": NamedTask(NAMED_SOURCES["deepmath"].hub_id, "train", dealt=True, most=500),
}


@dataclass(frozen=True)
class Task:
    """A task has the questions of one source. verified: whether they have answers, all of them. notes: for people."""

    name: str
    questions: tuple[RawPrompt, ...]
    verified: bool
    notes: tuple[str, ...] = ()


def open_tasks(settings: EvalSettings) -> list[Task]:
    """Open the tasks that the settings name, in their order, each of at most ``--limit`` questions.

    A row that is no question is left out. Raises UserError when a source cannot be read, has no questions, half of
    them are wrong, or has answers to some of them only.
    """
    names = comma_separated(settings.dataset)
    if settings.dataset_path and len(names) != 1:
        raise UserError(
            f"--dataset_path: given for {len(names)} data sets, needs to be a copy of the one that --dataset names"
        )
    if settings.dataset_config and len(names) != 1:
        raise UserError(
            f"--dataset_config: given for {len(names)} data sets, needs to be one of the set that --dataset names"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--dataset: {twice[0]} is named twice; name each data set once")
    tasks = [_open(name, settings) for name in names]
    if settings.prompts_file:
        raw = read_prompts_file(settings.prompts_file)
        where = f"--prompts_file {settings.prompts_file}"
        tasks.append(_task(settings.prompts_file, where, range(len(raw))[: settings.limit], raw.__getitem__))
    return tasks


def readable(task: Task, verifier: Verifier, *, must_read: bool) -> Task:
    """Return the task without the questions whose reference the verifier cannot read.

    must_read: the user wrote them, so that one is a mistake to be mended: UserError, with its place.
    """
    if not task.verified:
        return task
    kept: list[RawPrompt] = []
    for question in task.questions:
        if verifier.readable(question.answer or ""):
            kept.append(question)
        elif must_read:
            raise UserError(
                f"{question.origin}: the answer {question.answer!r} cannot be read as the verifier needs it; mend it, "
                "or choose other --answers (math, exact, contains)"
            )
    left_out = len(task.questions) - len(kept)
    if not kept:
        raise UserError(f"--dataset {task.name}: no answer of it can be read; give --answer_column, or other --answers")
    are = "is" if left_out == 1 else "are"
    of_all = f"{left_out} of {counted(len(task.questions), 'question')}"
    note = f"{task.name}: {of_all} {are} left out, for their answers cannot be read"
    return replace(task, questions=tuple(kept), notes=(*task.notes, note) if left_out else task.notes)


def is_written(name: str) -> bool:
    """Tell whether a task is a file of the user's own, not a data set."""
    return name not in NAMED_TASKS and Path(name).expanduser().is_file()


def asked(question: RawPrompt, template: str) -> RawPrompt:
    """Put a question, of a chat its last user message, into the words of ``template``, which has PLACE in it."""
    messages = list(question.messages)
    place = max(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[place] = {**messages[place], "content": template.replace(PLACE, messages[place]["content"])}
    return replace(question, messages=tuple(messages))


def _open(name: str, settings: EvalSettings) -> Task:
    path, limit = settings.dataset_path, settings.limit
    where = f"--dataset_path {path}" if path else f"--dataset {name}"
    named = next((task for known, task in NAMED_TASKS.items() if name in (known, task.hub_id)), None)
    place = Path(path or name).expanduser()
    if path and not place.exists():
        raise UserError(f"{where}: no such file or folder; give the folder or file that holds the copy of {name}")
    if named is None and is_written(name) and kind_of(place) == ".jsonl":
        return _written(name, place, where, settings)
    if named is None and not place.exists():
        _check_name(name)
    table = load_table(
        path or (named.hub_id if named else name),
        settings.dataset_split or (named.split if named else "test"),
        where,
        settings.dataset_config or _subset(named, place),
    )
    found = _columns(table.column_names, settings, where)
    table = table.select_columns([each for each in (*found, *({TOOLS_COLUMN} & set(table.column_names))) if each])
    order: Sequence[int] = range(len(table))
    if named and named.dealt:
        order = shuffled(len(table), settings.seed)[::-1]
    chosen = order[: limit or (named.most if named else None)]
    if not chosen:
        raise UserError(f"{where}: no question in it; needs at least one row")

    def read(place: int) -> RawPrompt:
        return _question(without_nulls(table[place]), found, f"{name}[{place}]", f"{where}: row {place}")

    return _task(name, where, chosen, read)


def _subset(named: NamedTask | None, place: Path) -> str | None:
    """Return the part of a named set that is asked; None in a local copy of that part alone."""
    if named is None or named.subset is None or not place.exists():
        return named.subset if named else None
    return named.subset if has_configurations(place) or (place / named.subset).is_dir() else None


def _written(name: str, file: Path, where: str, settings: EvalSettings) -> Task:
    """Open a JSONL file of the user's own, whose mistakes are told by their lines."""
    rows = json_rows(file, where)[: settings.limit]
    if not rows:
        raise UserError(f"{where}: no question in it; write one JSON object a line")
    first = next((row for row in rows if isinstance(row.content, dict)), rows[0])
    found = _columns(list(first.fields()), settings, first.where)

    def read(place: int) -> RawPrompt:
        row = rows[place]
        return _question(row.fields(), found, row.origin, row.where)

    return _task(name, where, range(len(rows)), read)


def _columns(there: Sequence[str], settings: EvalSettings, where: str) -> tuple[str, str | None]:
    """Return the columns of question and answer: those given, else the first of the usual ones, in any case."""
    for flag, given in (("question", settings.question_column), ("answer", settings.answer_column)):
        if given and given not in there:
            raise UserError(f"--{flag}_column {given}: not there in {where}; it has {', '.join(there)}")
    lower = {name.lower(): name for name in there}
    question = settings.question_column or next((lower[name] for name in QUESTION_COLUMNS if name in lower), None)
    if question is None:
        raise UserError(f"{where}: needs --question_column, the column to ask; it has {', '.join(there)}")
    return question, settings.answer_column or answer_column(there)


def _question(row: dict[str, Any], columns: tuple[str, str | None], origin: str, where: str) -> RawPrompt:
    question, answer = columns
    if question not in row:
        raise UserError(f"{where}: no {question}; it has {', '.join(row) or 'nothing'}")
    messages = read_messages(from_sharegpt(row[question]), where)
    if not messages:
        raise UserError(f"{where}: {question} asks nothing; needs text, or a user message with text")
    answered = read_answer(row.get(answer)) if answer else None
    return RawPrompt(messages, origin, answered, read_tools(row.get(TOOLS_COLUMN), where))


def _task(name: str, where: str, places: Sequence[int], read: Callable[[int], RawPrompt]) -> Task:
    rows, wrong = [], []
    for place in places:
        try:
            rows.append(read(place))
        except UserError as error:
            wrong.append(error)
    check_share_of_wrong(wrong, len(places))
    answered = [bool(row.answer and row.answer.strip()) for row in rows]
    if any(answered) and not all(answered):
        raise UserError(
            f"{where}: {rows[answered.index(False)].origin} has no answer and {rows[answered.index(True)].origin} has "
            "one; give all of them one, as text or a number, or none"
        )
    return without_wrong(Task(name, tuple(rows), all(answered)), wrong)


def without_wrong(task: Task, wrong: Sequence[UserError]) -> Task:
    """Return the task, which says how many questions were left out of it."""
    if not wrong:
        return task
    are = "is" if len(wrong) == 1 else "are"
    note = f"{task.name}: {counted(len(wrong), 'question')} {are} left out, wrong, such as {wrong[0]}"
    return replace(task, notes=(*task.notes, note))


def _check_name(name: str) -> None:
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return
    near = difflib.get_close_matches(name.lower(), NAMED_TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"--dataset {name}: no such file, folder or data set; {hint}needs {', '.join(NAMED_TASKS)}, a hub id "
        "(owner/name), or a local file or folder"
    )
