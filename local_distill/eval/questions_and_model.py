"""Everything that an evaluation is given, opened and checked before any weights are loaded."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

from local_distill.backends import teacher_of
from local_distill.batch import Prompt
from local_distill.errors import UserError
from local_distill.eval.eval_config import MATH, EvalSettings
from local_distill.eval.output_folder import date_kept
from local_distill.eval.tasks import (
    MATH_TEMPLATE,
    PLACE,
    Task,
    asked,
    is_written,
    open_tasks,
    readable,
    without_wrong,
)
from local_distill.eval.verifying import Verifier, open_verifier
from local_distill.models.files import ModelFiles, open_model
from local_distill.models.pair import ModelPair, pair_of
from local_distill.models.trained import Trained, open_trained
from local_distill.packages import installed
from local_distill.process.launch import Precision, resolve_precision
from local_distill.prompts import Renderer
from local_distill.prompts.raw import check_share_of_wrong
from local_distill.rollouts.student_checks import check_has_cache, check_positions

FLAG = "MODEL"


@dataclass(frozen=True)
class Subject:
    """A model is evaluated, and reads questions in its own way.

    name: as it is called in files and tables. pair: the model beside its teacher. prompts: of each task, as this model
    reads them.
    """

    name: str
    trained: Trained
    pair: ModelPair
    renderer: Renderer
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalInputs:
    """An evaluation is made of these, and of weights. verifier: None where no task has answers."""

    settings: EvalSettings
    precision: Precision
    tasks: tuple[Task, ...]
    verifier: Verifier | None
    subjects: tuple[Subject, ...]

    @property
    def fixed(self) -> dict[str, Any]:
        """Return what the answers depend on, the questions themselves included."""
        flags = {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.metadata["fixed"]}
        said = hashlib.sha256()
        for task in self.tasks:
            for question in task.questions:
                tools = [question.tools] if question.tools else []
                row = (task.name, question.messages, question.answer, *tools)
                said.update(repr(row).encode("utf-8", "backslashreplace"))
        return {**flags, "questions": said.hexdigest()[:16]}

    @property
    def longest(self) -> int:
        """Return the tokens of the longest prompt and completion together."""
        prompts = (prompt for each in self.subjects for rows in each.prompts.values() for prompt in rows)
        return self.settings.max_new_tokens + max((len(prompt.ids) for prompt in prompts), default=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of models and questions."""
        stops = (f"{each.name}: {each.pair.stops.note}" for each in self.subjects if each.pair.stops.note)
        templates = (f"{each.name}: {note}" for each in self.subjects for note in each.renderer.notes)
        notes = [self.precision.note, *stops, *templates, *(note for task in self.tasks for note in task.notes)]
        return tuple(filter(None, notes))


def check(settings: EvalSettings, closing: ExitStack) -> EvalInputs:
    """Open everything but the weights. Raises UserError at the first thing that is wrong.

    closing: ends the process that verifies.
    """
    date = settings.template_date or date_kept(settings.output) or str(datetime.date.today())
    settings = replace(settings, template_date=date)
    precision = resolve_precision(settings.dtype)
    if settings.tasks and not installed("lm_eval"):
        raise UserError(
            "--tasks: needs lm-evaluation-harness, which is not installed; pip install 'local-distill[harness]'"
        )
    tasks = open_tasks(settings)
    for task in tasks:
        if not task.verified and not settings.measures_kl:
            raise UserError(
                f"{task.name}: has no answers to verify, and there is no --teacher_model to measure the reverse KL "
                "against; give one, or --answer_column"
            )
    trained = [open_trained(FLAG, path, settings.trust_remote_code, settings.step) for path in settings.models]
    names = [
        path if each.step is None else f"{path.rstrip('/')} (step {each.step})"
        for path, each in zip(settings.models, trained, strict=True)
    ]
    teacher = _open_teacher(settings, [name for name, each in zip(names, trained, strict=True) if not each.adapter])
    verifier = open_verifier(settings.answers) if any(task.verified for task in tasks) else None
    if verifier:
        closing.callback(verifier.close)
        tasks = [readable(task, verifier, must_read=is_written(task.name)) for task in tasks]
    readers = []
    for name, each in zip(names, trained, strict=True):
        if not settings.samples_by_server:
            check_has_cache(each.files)
        pair = pair_of(each.files, teacher)
        readers.append(Subject(name, each, pair, Renderer.of(pair, settings)))
    asked_of = [_ask_all(task, readers, settings) for task in tasks]
    subjects = tuple(
        replace(reader, prompts={task.name: tuple(row[place] for row in rows) for task, rows in asked_of})
        for place, reader in enumerate(readers)
    )
    inputs = EvalInputs(settings, precision, tuple(task for task, _ in asked_of), verifier, subjects)
    for files in (*(each.files for each in trained), *([teacher] if teacher else [])):
        check_positions(files, inputs.longest - settings.max_new_tokens, settings.max_new_tokens)
    return inputs


def _open_teacher(settings: EvalSettings, whole: Sequence[str]) -> ModelFiles | None:
    """Open the files of a teacher whose weights will be here. whole: models without an adapter, by their names."""
    as_trained = settings.as_trained
    if as_trained is None:
        return None
    backend = teacher_of(as_trained)
    if backend.memory.is_student and whole:
        raise UserError(f"--teacher_model self: {whole[0]} has no adapter; name the teacher")
    if backend.memory.held is None:
        return None
    teacher = open_model("--teacher_model", as_trained.teacher_model, settings.trust_remote_code)
    if backend.check_files:
        backend.check_files(as_trained, teacher)
    return teacher


def _ask_all(task: Task, readers: Sequence[Subject], settings: EvalSettings) -> tuple[Task, list[tuple[Prompt, ...]]]:
    """Return the questions that can be put to every model, and each of them as each model reads it.

    Raises UserError for one that leaves no room for an answer.
    """
    template = settings.prompt_template or (MATH_TEMPLATE if task.verified and settings.answers == MATH else PLACE)
    kept, rows, spelled, wrong = [], [], 0, []
    for question in task.questions:
        raw = asked(question, template)
        try:
            ids = [reader.renderer.render(raw) for reader in readers]
        except UserError as error:
            wrong.append(error)
            continue
        for reader, each in zip(readers, ids, strict=True):
            context = reader.pair.context_length
            if context is not None and len(each) + settings.max_new_tokens > context:
                raise UserError(
                    f"--max_new_tokens: {settings.max_new_tokens} given, {raw.origin} has {len(each)} tokens and the "
                    f"context of {reader.name} holds {context}; lower it, or leave that question out"
                )
        kept.append(question)
        rows.append(tuple(Prompt(each, raw.text, raw.origin, raw.answer) for each in ids))
        spelled += bool(readers[0].renderer.control_tokens_in(raw))
    check_share_of_wrong(wrong, len(task.questions))
    if spelled:
        read_as = "control tokens" if settings.keep_control_tokens else "ordinary text, unless --keep_control_tokens"
        task = replace(task, notes=(*task.notes, f"{task.name}: {spelled} questions spell control tokens: {read_as}"))
    return without_wrong(replace(task, questions=tuple(kept)), wrong), rows
