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
class _Site:
    """What all models of an evaluation share. teacher: loaded when the first model needs it."""

    inputs: EvalInputs
    output: OutputFolder
    accelerator: Accelerator
    say: Callable[[str], None]
    closing: ExitStack
    teacher: nn.Module | None = None

    @property
    def settings(self) -> EvalSettings:
        """As given."""
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
        site = _Site(inputs, open_output(settings.output, inputs.fixed, closing), accelerator, say, closing)
        _check_served(site)
        for note in inputs.notes:
            say(note)
        say(f"answers go to {site.output.path}")
        try:
            on_harness = {subject.name: _ask(site, subject, console.is_terminal) for subject in inputs.subjects}
        except (KeyboardInterrupt, Stopped) as stopped:
            say(f"stopped; the same command with --output {site.output.path} goes on from here")
            return stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"--max_new_tokens: out of memory ({str(error).split('. ')[0]}); lower it; what was answered is in "
                f"{site.output.path}"
            ) from error
        measured = [measure(subject.name, inputs, site.output) for subject in inputs.subjects]
        compared = [each for after in measured[1:] for each in differences(measured[0], after)]
        site.output.write_results(to_record(inputs, measured, compared, on_harness))
    show(console, inputs, measured, compared, on_harness)
    return 0


def _ask(site: _Site, subject: Subject, live: bool) -> dict[str, Any]:
    """Everything that one model is still to be asked; what the harness says of it."""
    settings, output = site.settings, site.output
    answers, divergences = _missing(site, subject)
    left = sum(answers.values()) + sum(divergences.values())
    if not left and not settings.tasks:
        return {}
    needs_weights = bool(settings.tasks or any(divergences.values()) or not settings.samples_by_server)
    model = _load(site, subject) if needs_weights else None
    try:
        with _progress(subject.name, left, live) as tick:
            sampler = _sampler(site, subject, model, tick)
            for task in site.inputs.tasks:
                if answers.get(task.name):
                    assert site.inputs.verifier is not None
                    answer_all(
                        subject.name, task.name, subject.prompts[task.name], sampler, site.inputs.verifier,
                        output.answers, tokenizer=subject.pair.student.tokenizer,
                        choose=choice_of(settings.temperature, settings.top_p), samples=settings.samples,
                    )  # fmt: skip
            if any(divergences.values()):
                assert model is not None
                scoring = _scoring(site, subject, model)
                for name, prompts in subject.prompts.items():
                    diverge_all(subject.name, name, prompts, sampler, scoring, output.divergences)
        if not settings.tasks:
            return {}
        assert model is not None
        return harness.run_tasks(settings, model, subject.pair.student.tokenizer, site.accelerator.device)
    finally:
        del model
        release_memory()


def _missing(site: _Site, subject: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """How many answers of each task, and how many scored completions, are not in the output folder."""
    settings, output = site.settings, site.output
    answers = {
        task.name: missing_answers(output, subject.name, task.name, len(task.questions), settings.samples)
        for task in site.inputs.tasks
        if task.verified
    }
    divergences = {
        task.name: missing_divergences(output, subject.name, task.name, len(task.questions))
        for task in site.inputs.tasks
        if settings.measures_kl
    }
    return answers, divergences


def _check_served(site: _Site) -> None:
    """Raise UserError when one server would have to sample for several models."""
    unanswered = [each.name for each in site.inputs.subjects if any(sum(m.values()) for m in _missing(site, each))]
    if site.settings.samples_by_server and len(unanswered) > 1:
        raise UserError(
            f"--rollouts_url: serves one model, and {len(unanswered)} MODELs have not answered yet; start it for each "
            "in turn with that MODEL alone and the same --output, then give all of them to compare"
        )


def _load(site: _Site, subject: Subject) -> nn.Module:
    model = subject.trained.load(site.inputs.precision.dtype, site.accelerator.device)
    scorer, flag = TokenScorer(model, subject.pair.vocab_size), f"MODEL {subject.name}"
    check_head(scorer, flag)
    if not site.settings.samples_by_server:
        check_sampling(
            scorer, flag, pad_id=subject.pair.pad_id, longest=site.inputs.longest, autocast=_autocast(site, subject)
        )
    return model


def _autocast(site: _Site, subject: Subject) -> Callable[[], Any]:
    """An adapter is float32 on a base that may not be."""
    return site.accelerator.autocast if subject.trained.adapter else nullcontext


def _sampler(site: _Site, subject: Subject, model: nn.Module | None, tick: Callable[[int], None]) -> Sampler:
    settings = site.settings
    shared: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_ids": subject.pair.stops.ids,
        "vocab_size": subject.pair.vocab_size,
        "seed": settings.seed,
    }
    if settings.samples_by_server:
        make = served_sampler(settings, subject, longest=site.inputs.longest, say=site.say, closing=site.closing)
        return Sampler("vllm", partial(make, **shared), settings.sampling_batch_size, tick)
    assert model is not None
    make = partial(
        HFRollouts, model, pad_id=subject.pair.pad_id, batch_size=settings.sampling_batch_size,
        autocast=_autocast(site, subject), say=site.say, **shared,
    )  # fmt: skip
    return Sampler("hf", make, settings.sampling_batch_size, tick)


def _scoring(site: _Site, subject: Subject, model: nn.Module) -> Scoring:
    settings, device = site.settings, site.accelerator.device
    scorer = TokenScorer(model, subject.pair.vocab_size).eval()
    check_scorer(scorer, f"MODEL {subject.name}")
    if settings.teacher_model == SELF:
        teacher: Teacher = WholeDistributionTeacher(BaseOfStudent(scorer), device)
    elif settings.teacher_url:
        teacher = served_teacher(
            settings, subject, longest=site.inputs.longest, device=device, say=site.say, closing=site.closing
        )
    else:
        teacher = _local_teacher(site, subject.pair.vocab_size)
    return Scoring(scorer, teacher, subject.pair.pad_id, _autocast(site, subject))


def _local_teacher(site: _Site, vocab_size: int) -> Teacher:
    """Loaded once; the vocabulary is what it shares with the model at hand."""
    assert site.inputs.teacher is not None
    if site.teacher is None:
        site.teacher = site.inputs.teacher.load(site.inputs.precision.dtype).to(site.accelerator.device)
    scorer = TokenScorer(site.teacher, vocab_size)
    check_scorer(scorer, "--teacher_model")
    return WholeDistributionTeacher(scorer, site.accelerator.device)


@contextmanager
def _progress(name: str, total: int, live: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal. What it gives is called with how many completions were written down."""
    if not live or not total:
        yield lambda _: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(clean(name), total=total)
        yield lambda done: bar.advance(task, done)
