"""An evaluation from its settings to its table, in five calls, one after the other.

    check     → EvalInputs   settings, questions, the models' files: all that can be refused before any weights
    open_run  → EvalRun      the folder of the answers, which may hold some already
    ask       → Harness      each model in turn is loaded, answers what it has not answered, and is scored
    judge     → Results      the numbers of each model, and what differs between two
    write                    results.json and the tables

``check`` is in questions_and_model.py, ``judge`` in scores.py; the others stand below, with what they are made of.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from local_distill.backends import MakeSampler, Opening, teacher_of
from local_distill.batch import Teacher
from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError
from local_distill.eval.asking import Sampler, Scoring, answer_all, score_all
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.harness import Harness, TaskResults, run_tasks
from local_distill.eval.output_folder import OutputFolder, open_output
from local_distill.eval.questions_and_model import EvalInputs, Subject, check
from local_distill.eval.scores import Results, judge, show, to_record
from local_distill.head.sampling import Greedy, NucleusSampling, SamplingParams
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head, check_scorer
from local_distill.monitor.terminal import open_console
from local_distill.process.host_memory import keep_freed_memory
from local_distill.process.signals import Stopped
from local_distill.rollouts import vllm_server
from local_distill.rollouts.checking import check_sampling
from local_distill.rollouts.hf import HFRollouts
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import Publisher
from local_distill.training.device_memory import is_out_of_memory, release_memory
from local_distill.wording import clean


@dataclass(frozen=True)
class EvalRun:
    """All models of an evaluation share this.

    teachers: that whose weights are here, by the number of tokens that it shares with a model; empty until it is
    needed.
    """

    inputs: EvalInputs
    output: OutputFolder
    accelerator: Accelerator
    console: Console
    closing: ExitStack
    teachers: dict[int, Teacher] = field(default_factory=dict)

    @property
    def settings(self) -> EvalSettings:
        """Return the settings as given, with the date of the chat templates."""
        return self.inputs.settings

    def say(self, text: str) -> None:
        """Print a line for people."""
        self.console.print(clean(text), markup=False, soft_wrap=True)

    def autocast(self, subject: Subject) -> Callable[[], AbstractContextManager[None]]:
        """Return the context of a model: an adapter is float32 on a base that may not be."""
        return self.accelerator.autocast if subject.trained.adapter else nullcontext


def evaluate(settings: EvalSettings) -> int:
    """Evaluate as ``settings`` says. Returns the exit code. Raises UserError for what the user can mend."""
    with ExitStack() as closing:
        run = open_run(check(settings, closing), closing)
        try:
            on_harness = ask(run)
        except (KeyboardInterrupt, Stopped) as stopped:
            run.say(f"stopped; the same command with --output {run.output.path} goes on from here")
            return stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        results = judge(run.inputs, run.output, on_harness)
        write(run, results)
    return 0


def open_run(inputs: EvalInputs, closing: ExitStack) -> EvalRun:
    """Open the folder of the answers. Raises UserError where it holds others, or one server would have to be several.

    closing: keeps the folder from other evaluations until it is closed.
    """
    console, accelerator = open_console(), Accelerator(mixed_precision=inputs.precision.mixed)
    if accelerator.num_processes > 1:
        raise UserError("eval: runs as one process; start it without a launcher, or sample with --rollouts_url")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    output = open_output(inputs.settings.output, inputs.fixed, closing)
    run = EvalRun(inputs, output, accelerator, console, closing)
    unanswered = sum(any(sum(each.values()) for each in missing(run, subject)) for subject in inputs.subjects)
    if inputs.settings.samples_by_server and unanswered > 1:
        raise UserError(
            f"--rollouts_url: serves one model, and {unanswered} MODELs have not answered yet; start it for each "
            "in turn with that MODEL alone and the same --output, then give all of them to compare"
        )
    for note in (*inputs.notes, f"answers go to {output.path}"):
        run.say(note)
    return run


def ask(run: EvalRun) -> Harness:
    """Ask every model what it has not answered yet. Returns what the harness says of each."""
    found = {}
    for subject in run.inputs.subjects:
        try:
            found[subject.name] = ask_one(run, subject)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"--max_new_tokens: out of memory ({str(error).split('. ')[0]}); lower it; what was answered is in "
                f"{run.output.path}"
            ) from error
        release_memory()  # this model's
    return found


def write(run: EvalRun, results: Results) -> None:
    """Write results.json, and show the numbers."""
    run.output.write_results(to_record(run.inputs, results))
    show(run.console, run.inputs, results)


def missing(run: EvalRun, subject: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """Count the answers to each task, and the scored completions, that are not in the output folder.

    Answers are counted by whole questions.
    """
    name, samples, tasks = subject.name, run.settings.samples, run.inputs.tasks
    answers, scored = run.output.answers, run.output.scored
    return (
        {t.name: samples * len(answers.missing(name, t.name, len(t.questions), samples)) for t in tasks if t.verified},
        {t.name: len(scored.missing(name, t.name, len(t.questions))) for t in tasks if run.settings.measures_kl},
    )


def ask_one(run: EvalRun, subject: Subject) -> TaskResults:
    """Ask one model what it is still to be asked. Returns what the harness says of it."""
    settings, verifier = run.settings, run.inputs.verifier
    answers, scored = missing(run, subject)
    left = sum(answers.values()) + sum(scored.values())
    if not left and not settings.tasks:
        return {}
    needs_weights = settings.tasks or any(scored.values()) or not settings.samples_by_server
    model = load(run, subject) if needs_weights else None
    with progress(run.console, subject.name, left) as tick:
        sampler = open_sampler(run, subject, model, tick)
        for task in (name for name, number in answers.items() if number):
            assert verifier is not None
            answer_all(subject, task, sampler, verifier, run.output.answers)
        if any(scored.values()):
            assert model is not None
            scoring = open_scoring(run, subject, model)
            for task in scored:
                score_all(subject, task, sampler, scoring, run.output.scored)
    if not settings.tasks:
        return {}
    assert model is not None
    return run_tasks(settings, model, subject.pair.student.tokenizer, run.accelerator.device)


def load(run: EvalRun, subject: Subject) -> nn.Module:
    """Load a model and try it. Raises UserError for one that would not be sampled and scored as one and the same."""
    model = subject.trained.load(run.inputs.precision.dtype, run.accelerator.device)
    scorer, flag = TokenScorer(model, subject.pair.vocab_size), f"MODEL {subject.name}"
    check_head(scorer, flag)
    if not run.settings.samples_by_server:
        check_sampling(
            scorer, flag, pad_id=subject.pair.pad_id, longest=run.inputs.longest, autocast=run.autocast(subject)
        )
    return model


def open_sampler(run: EvalRun, subject: Subject, model: nn.Module | None, tick: Callable[[int], None]) -> Sampler:
    """Open what a model answers with: the servers, or our own loop, for which it is loaded."""
    settings, pair = run.settings, subject.pair
    choose = NucleusSampling(settings.temperature, settings.top_p) if settings.temperature else Greedy()
    params = SamplingParams(choose, settings.samples, settings.max_new_tokens, frozenset(pair.stops.ids), settings.seed)
    if settings.samples_by_server:
        return Sampler("vllm", open_served(run, subject), params, settings.sampling_batch_size, tick)
    assert model is not None

    def make(params: SamplingParams) -> HFRollouts:
        return HFRollouts(
            model, params=params, pad_id=pair.pad_id, vocab_size=pair.vocab_size,
            batch_size=settings.sampling_batch_size, autocast=run.autocast(subject), say=run.say,
        )  # fmt: skip

    return Sampler("hf", make, params, settings.sampling_batch_size, tick)


def open_served(run: EvalRun, subject: Subject) -> MakeSampler:
    """Ask the servers of --rollouts_url for the model, whose weights stay as they are.

    Raises UserError when they serve something else.
    """
    settings, pair = run.settings, subject.pair
    client = HttpClient(
        comma_separated(settings.rollouts_url), flag=vllm_server.FLAG, key_variable=vllm_server.KEY_VARIABLE,
        timeout=settings.server_timeout, patience=settings.server_patience, concurrency=settings.server_concurrency,
        say=run.say,
    )  # fmt: skip
    run.closing.callback(client.close)
    # Temperature 1: the log-probs of the draws, which this would ask for as well, are not used.
    name = vllm_server.check_engine(
        client, pair.student.tokenizer, longest=run.inputs.longest, choose=NucleusSampling(1.0, 1.0)
    )
    run.say(f"{subject.name}: sampled by {', '.join(client.urls)}, where it is called {name}")
    return lambda params: vllm_server.VLLMServerRollouts(
        client, Publisher(name), params=params, vocab_size=pair.vocab_size, rows=pair.rows
    )


def open_scoring(run: EvalRun, subject: Subject, model: nn.Module) -> Scoring:
    """Open what compares a model with the teacher."""
    scorer = TokenScorer(model, subject.pair.vocab_size).eval()
    check_scorer(scorer, f"MODEL {subject.name}")
    return Scoring(scorer, open_teacher(run, subject, scorer), subject.pair.pad_id, run.autocast(subject))


def open_teacher(run: EvalRun, subject: Subject, scorer: TokenScorer) -> Teacher:
    """Open the teacher as training does. Weights that are here serve all models that share as many tokens with it."""
    inputs, shared = run.inputs, subject.pair.vocab_size
    if shared in run.teachers:
        return run.teachers[shared]
    run.teachers.clear()
    release_memory()
    as_trained = run.settings.as_trained
    assert as_trained is not None
    opening = Opening(
        as_trained, subject.pair, None, inputs.precision.dtype, inputs.longest, run.accelerator, run.output.path,
        run.say, run.closing,
    )  # fmt: skip
    backend = teacher_of(as_trained)
    teacher = backend.open(opening)(scorer, backend.gives).evaluation
    if backend.memory.held:
        run.teachers[shared] = teacher
    return teacher


@contextmanager
def progress(console: Console, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal. What it gives is called with how many completions were written down."""
    if not console.is_terminal or not total:
        yield lambda _: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(clean(name), total=total)
        yield lambda done: bar.advance(task, done)
