"""From questions to answers: what is not in the output folder yet is sampled, verified or scored, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from local_distill.backends import MakeSampler, Opening, teacher_of
from local_distill.batch import Prompt, Rollout, Teacher
from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError, without_advice
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.harness import Harness, TaskResults, run_tasks
from local_distill.eval.held_out import DRAW, compare_rollouts, total_of
from local_distill.eval.output_folder import Answer, OutputFolder, ScoredCompletion, open_output
from local_distill.eval.questions_and_model import EvalInputs, Subject
from local_distill.head.sampling import Greedy, NucleusSampling, SamplingParams
from local_distill.models.comparison import Comparison
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head, check_scorer
from local_distill.monitor.terminal import open_console
from local_distill.process.launch import keep_freed_memory
from local_distill.rollouts import vllm_server
from local_distill.rollouts.checking import check_sampling
from local_distill.rollouts.hf import HFRollouts
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import Publisher
from local_distill.training.batching import MicroBatches
from local_distill.training.device_memory import is_out_of_memory, release_memory
from local_distill.wording import clean

ANSWERS_DRAW = -2
"""The step whose random numbers answers draw: no training step's, and not those of the reverse KL."""
SCORED_TOGETHER = 4096
"""Most tokens that are scored at a time, padding included."""
Places = Mapping[str, Sequence[int]]
"""The questions of each task that a model has not answered yet."""


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
    unanswered = [subject for subject in inputs.subjects if any(any(each.values()) for each in missing(run, subject))]
    if inputs.settings.samples_by_server and len(unanswered) > 1:
        raise UserError(
            f"--rollouts_url: serves one model, and {len(unanswered)} MODELs have not answered yet; start it for each "
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
                f"--max_new_tokens: out of memory ({without_advice(error)}); lower it; what was answered is in "
                f"{run.output.path}"
            ) from error
        release_memory()  # this model's
    return found


def missing(run: EvalRun, subject: Subject) -> tuple[Places, Places]:
    """Return the questions without all their answers, and those without a scored completion."""
    settings, answers, scored = run.settings, run.output.answers, run.output.scored
    tasks = [(task.name, len(task.questions), task.verified) for task in run.inputs.tasks]
    return (
        {name: answers.missing(subject.name, name, n, settings.samples) for name, n, verified in tasks if verified},
        {name: scored.missing(subject.name, name, n) for name, n, _ in tasks if settings.measures_kl},
    )


def ask_one(run: EvalRun, subject: Subject) -> TaskResults:
    """Ask one model what it is still to be asked. Returns what the harness says of it."""
    settings = run.settings
    unanswered, unscored = missing(run, subject)
    to_score = sum(map(len, unscored.values()))
    left = settings.samples * sum(map(len, unanswered.values())) + to_score
    if not left and not settings.tasks:
        return {}
    model = load(run, subject) if settings.tasks or to_score or not settings.samples_by_server else None
    with progress(run.console, subject.name, left) as tick:
        sampler = open_sampler(run, subject, model, tick)
        answer_all(run, subject, unanswered, sampler)
        if to_score:
            assert model is not None
            score_all(run, subject, unscored, sampler, model)
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


@dataclass(frozen=True)
class Sampler:
    """A model answers with this.

    name: hf or vllm. params: of answers. tick: told how many completions were written down.
    """

    name: str
    make: MakeSampler
    params: SamplingParams
    tick: Callable[[int], None]


def open_sampler(run: EvalRun, subject: Subject, model: nn.Module | None, tick: Callable[[int], None]) -> Sampler:
    """Open what a model answers with: the servers, or our own loop, for which it is loaded."""
    settings, pair = run.settings, subject.pair
    choose = NucleusSampling(settings.temperature, settings.top_p) if settings.temperature else Greedy()
    params = SamplingParams(choose, settings.samples, settings.max_new_tokens, frozenset(pair.stops.ids), settings.seed)
    if settings.samples_by_server:
        return Sampler("vllm", open_served(run, subject), params, tick)
    assert model is not None

    def make(params: SamplingParams) -> HFRollouts:
        return HFRollouts(
            model, params=params, pad_id=pair.pad_id, vocab_size=pair.vocab_size,
            batch_size=settings.sampling_batch_size, autocast=run.autocast(subject), say=run.say,
        )  # fmt: skip

    return Sampler("hf", make, params, tick)


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


def answer_all(run: EvalRun, subject: Subject, places: Places, sampler: Sampler) -> None:
    """Sample, verify and write down as many answers to each question as were asked for."""
    samples, verifier, tokenizer = sampler.params.group_size, run.inputs.verifier, subject.pair.student.tokenizer

    def judged(task: str, rollout: Rollout, sample: int) -> Answer:
        assert verifier is not None
        text = str(tokenizer.decode(rollout.completion, skip_special_tokens=True))
        prompt, reference = rollout.prompt, rollout.prompt.answer or ""
        verdict = verifier.verdict(text, reference)
        return Answer(
            subject.name, task, rollout.position, sample, prompt.origin, prompt.text, text, verdict.extracted,
            reference, verdict.correct, len(rollout.completion), rollout.finish, sampler.name,
        )  # fmt: skip

    engine = sampler.make(sampler.params)
    for task, part in chunks(subject, places, max(1, run.settings.sampling_batch_size // samples)):
        rollouts = engine.sample(part, ANSWERS_DRAW)
        run.output.answers.add([judged(task, rollout, index % samples) for index, rollout in enumerate(rollouts)])
        sampler.tick(len(rollouts))


def score_all(run: EvalRun, subject: Subject, places: Places, sampler: Sampler, model: nn.Module) -> None:
    """Draw and score one completion a prompt, at temperature 1 and top-p 1: as held-out prompts in training."""
    scorer = TokenScorer(model, subject.pair.vocab_size).eval()
    check_scorer(scorer, f"MODEL {subject.name}")
    teacher = open_teacher(run, subject, scorer)

    def scored(task: str, rollout: Rollout, compared: Comparison) -> ScoredCompletion:
        prompt, total = rollout.prompt, total_of(compared)
        if not math.isfinite(total.sum):
            raise UserError(
                f"{prompt.origin}: the reverse KL of this completion is {total.sum}: the model or its teacher give "
                "log-probs that are not finite in this precision; use --dtype fp32"
            )
        return ScoredCompletion(
            subject.name, task, rollout.position, prompt.origin, total.sum, total.tokens, rollout.finish, sampler.name
        )

    engine = sampler.make(replace(sampler.params, choose=NucleusSampling(1.0, 1.0), group_size=1))
    for task, part in chunks(subject, places, run.settings.sampling_batch_size):
        rollouts = engine.sample(part, DRAW, finished=teacher.prepare)
        compared = compare_rollouts(
            scorer, MicroBatches(SCORED_TOGETHER).split(rollouts, 1), subject.pair.pad_id, score=teacher.score,
            context=lambda _: run.autocast(subject)(),
        )  # fmt: skip
        found = [scored(task, *each) for each in compared]
        run.output.scored.add(sorted(found, key=lambda each: each.question))
        sampler.tick(len(found))


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


def chunks(subject: Subject, places: Places, size: int) -> Iterator[tuple[str, list[tuple[int, Prompt]]]]:
    """Yield the prompts of a model at those places, by task, so many at a time."""
    for task, left in places.items():
        for start in range(0, len(left), size):
            yield task, [(place, subject.prompts[task][place]) for place in left[start : start + size]]


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
