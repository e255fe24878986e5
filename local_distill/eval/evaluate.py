"""An evaluation from its settings to its table: check, ask each model in turn, compare."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from local_distill.batch import Teacher
from local_distill.errors import UserError
from local_distill.eval import harness
from local_distill.eval.answers import OutputFolder, date_kept, open_output
from local_distill.eval.asking import (
    Sampler,
    Scoring,
    answer_all,
    choice_of,
    diverge_all,
    missing_answers,
    missing_divergences,
)
from local_distill.eval.eval_config import SELF, EvalSettings
from local_distill.eval.questions_and_model import EvalInputs, Subject, check_inputs
from local_distill.eval.scores import differences, measure, show, to_record
from local_distill.eval.servers import served_sampler, served_teacher
from local_distill.head.sampling import SamplingParams
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head, check_scorer
from local_distill.monitor.terminal import open_console
from local_distill.process.host_memory import keep_freed_memory
from local_distill.process.signals import Stopped
from local_distill.rollouts.checking import check_sampling
from local_distill.rollouts.hf import HFRollouts
from local_distill.teachers.local import WholeDistributionTeacher
from local_distill.teachers.student_base import BaseOfStudent
from local_distill.training.device_memory import is_out_of_memory, release_memory
from local_distill.wording import clean


@dataclass
class _Shared:
    """What all models of an evaluation share. teacher: loaded when the first model needs it."""

    inputs: EvalInputs
    output: OutputFolder
    accelerator: Accelerator
    say: Callable[[str], None]
    closing: ExitStack
    teacher: nn.Module | None = None

    @property
    def settings(self) -> EvalSettings:
        """Return the settings as given."""
        return self.inputs.settings


def evaluate(settings: EvalSettings) -> int:
    """Evaluate as ``settings`` says. Returns the exit code. Raises UserError for what the user can mend."""
    date = settings.template_date or date_kept(settings.output) or str(datetime.date.today())
    inputs = check_inputs(replace(settings, template_date=date))
    console = open_console()

    def say(text: str) -> None:
        console.print(clean(text), markup=False, soft_wrap=True)

    with ExitStack() as closing:
        if inputs.verifier:
            closing.callback(inputs.verifier.close)
        accelerator = Accelerator(mixed_precision=inputs.precision.mixed)
        if accelerator.num_processes > 1:
            raise UserError("eval: runs as one process; start it without a launcher, or sample with --rollouts_url")
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        shared = _Shared(inputs, open_output(settings.output, inputs.fixed, closing), accelerator, say, closing)
        _check_served(shared)
        for note in inputs.notes:
            say(note)
        say(f"answers go to {shared.output.path}")
        try:
            on_harness = {subject.name: _ask(shared, subject, console.is_terminal) for subject in inputs.subjects}
        except (KeyboardInterrupt, Stopped) as stopped:
            say(f"stopped; the same command with --output {shared.output.path} goes on from here")
            return stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"--max_new_tokens: out of memory ({str(error).split('. ')[0]}); lower it; what was answered is in "
                f"{shared.output.path}"
            ) from error
        measured = [measure(subject.name, inputs, shared.output) for subject in inputs.subjects]
        compared = [each for after in measured[1:] for each in differences(measured[0], after)]
        shared.output.write_results(to_record(inputs, measured, compared, on_harness))
    show(console, inputs, measured, compared, on_harness)
    return 0


def _ask(shared: _Shared, subject: Subject, live: bool) -> dict[str, Any]:
    """Ask one model what it is still to be asked. Returns what the harness says of it."""
    settings, output = shared.settings, shared.output
    answers, divergences = _missing(shared, subject)
    left = sum(answers.values()) + sum(divergences.values())
    if not left and not settings.tasks:
        return {}
    needs_weights = bool(settings.tasks or any(divergences.values()) or not settings.samples_by_server)
    model = _load(shared, subject) if needs_weights else None
    try:
        with _progress(subject.name, left, live) as tick:
            sampler = _sampler(shared, subject, model, tick)
            for task in shared.inputs.tasks:
                if answers.get(task.name):
                    assert shared.inputs.verifier is not None
                    answer_all(
                        subject.name, task.name, subject.prompts[task.name], sampler, shared.inputs.verifier,
                        output.answers, tokenizer=subject.pair.student.tokenizer,
                    )  # fmt: skip
            if any(divergences.values()):
                assert model is not None
                scoring = _scoring(shared, subject, model)
                for name, prompts in subject.prompts.items():
                    diverge_all(subject.name, name, prompts, sampler, scoring, output.divergences)
        if not settings.tasks:
            return {}
        assert model is not None
        return harness.run_tasks(settings, model, subject.pair.student.tokenizer, shared.accelerator.device)
    finally:
        del model
        release_memory()


def _missing(shared: _Shared, subject: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """Count how many answers of each task, and how many scored completions, are not in the output folder."""
    settings, output = shared.settings, shared.output
    answers = {
        task.name: missing_answers(output, subject.name, task.name, len(task.questions), settings.samples)
        for task in shared.inputs.tasks
        if task.verified
    }
    divergences = {
        task.name: missing_divergences(output, subject.name, task.name, len(task.questions))
        for task in shared.inputs.tasks
        if settings.measures_kl
    }
    return answers, divergences


def _check_served(shared: _Shared) -> None:
    """Raise UserError when one server would have to sample for several models."""
    unanswered = [each.name for each in shared.inputs.subjects if any(sum(m.values()) for m in _missing(shared, each))]
    if shared.settings.samples_by_server and len(unanswered) > 1:
        raise UserError(
            f"--rollouts_url: serves one model, and {len(unanswered)} MODELs have not answered yet; start it for each "
            "in turn with that MODEL alone and the same --output, then give all of them to compare"
        )


def _load(shared: _Shared, subject: Subject) -> nn.Module:
    model = subject.trained.load(shared.inputs.precision.dtype, shared.accelerator.device)
    scorer, flag = TokenScorer(model, subject.pair.vocab_size), f"MODEL {subject.name}"
    check_head(scorer, flag)
    if not shared.settings.samples_by_server:
        check_sampling(
            scorer, flag, pad_id=subject.pair.pad_id, longest=shared.inputs.longest, autocast=_autocast(shared, subject)
        )
    return model


def _autocast(shared: _Shared, subject: Subject) -> Callable[[], Any]:
    """Return the context of the model: an adapter is float32 on a base that may not be."""
    return shared.accelerator.autocast if subject.trained.adapter else nullcontext


def _sampler(shared: _Shared, subject: Subject, model: nn.Module | None, tick: Callable[[int], None]) -> Sampler:
    settings = shared.settings
    choose, stops = choice_of(settings.temperature, settings.top_p), frozenset(subject.pair.stops.ids)
    params = SamplingParams(choose, settings.samples, settings.max_new_tokens, stops, settings.seed)
    if settings.samples_by_server:
        make = served_sampler(settings, subject, longest=shared.inputs.longest, say=shared.say, closing=shared.closing)
        return Sampler("vllm", make, params, settings.sampling_batch_size, tick)
    assert model is not None
    own = partial(
        HFRollouts, model, pad_id=subject.pair.pad_id, vocab_size=subject.pair.vocab_size,
        batch_size=settings.sampling_batch_size, autocast=_autocast(shared, subject), say=shared.say,
    )  # fmt: skip
    return Sampler("hf", lambda params: own(params=params), params, settings.sampling_batch_size, tick)


def _scoring(shared: _Shared, subject: Subject, model: nn.Module) -> Scoring:
    settings, device = shared.settings, shared.accelerator.device
    scorer = TokenScorer(model, subject.pair.vocab_size).eval()
    check_scorer(scorer, f"MODEL {subject.name}")
    if settings.teacher_model == SELF:
        teacher: Teacher = WholeDistributionTeacher(BaseOfStudent(scorer), device)
    elif settings.teacher_url:
        teacher = served_teacher(
            settings, subject, longest=shared.inputs.longest, device=device, say=shared.say, closing=shared.closing
        )
    else:
        teacher = _local_teacher(shared, subject.pair.vocab_size)
    return Scoring(scorer, teacher, subject.pair.pad_id, _autocast(shared, subject))


def _local_teacher(shared: _Shared, vocab_size: int) -> Teacher:
    """Return the teacher, which is loaded once; the vocabulary is what it shares with the model at hand."""
    assert shared.inputs.teacher is not None
    if shared.teacher is None:
        shared.teacher = shared.inputs.teacher.load(shared.inputs.precision.dtype).to(shared.accelerator.device)
    scorer = TokenScorer(shared.teacher, vocab_size)
    check_scorer(scorer, "--teacher_model")
    return WholeDistributionTeacher(scorer, shared.accelerator.device)


@contextmanager
def _progress(name: str, total: int, live: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal. What it gives is called with how many completions were written down."""
    if not live or not total:
        yield lambda _: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(clean(name), total=total)
        yield lambda done: bar.advance(task, done)
