"""Every setting of an evaluation; see TrainConfig for the way it works."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from local_distill.config.parsing import argument, option, same_as
from local_distill.config.ranges import FROM_1, LOWEST_TEMPERATURE, SEED, SHARE, Range, check_ranges, refuse_empty
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError

MATH, EXACT, CONTAINS = "math", "exact", "contains"
SELF = "self"
"""For ``--teacher_model``: the model under each adapter."""
BEHIND_URL = {"auto": None, "hf": False, "vllm": True}
"""What samples → whether that is behind ``--rollouts_url``; where it is left open, the flag decides."""

_models = partial(option, "models")
_questions = partial(option, "questions")
_prompts = partial(option, "prompts")
_sampling = partial(option, "sampling")
_output = partial(option, "output")

OR_GREEDY = Range(lambda v: v == 0 or v >= LOWEST_TEMPERATURE, f"0 for greedy, or at least {LOWEST_TEMPERATURE:g}")


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """``local-distill eval`` has these settings. Raises UserError when they contradict each other.

    fixed: what answers depend on; an --output folder holds answers of one such setting.
    """

    models: tuple[str, ...] = argument("Hub id, model folder, run, step of a run, adapter or GGUF file.", many=True)

    step: str = _models(
        "Of a MODEL that is a run: its last step, or the best one, which has the lowest held-out reverse KL. Any other "
        "is named by its own folder, runs/mine/step-40.",
        "last",
        choices=("last", "best"),
    )
    teacher_model: str | None = _models(
        "Measure the reverse KL against this model: hub id or local folder; self: the model under each adapter. "
        "Behind --teacher_url: the name that it is served by, if there are several.",
        fixed=True,
    )
    teacher_url: str | None = _models(
        "Comma-separated addresses of vLLM or SGLang servers that serve the teacher. An API key is read from "
        "LOCAL_DISTILL_TEACHER_API_KEY."
    )
    dtype: str = _models(
        "Precision of weights and products. auto: bf16 on a GPU that has it, else fp32.",
        "auto",
        choices=("auto", "bf16", "fp16", "fp32"),
        fixed=True,
    )
    trust_remote_code: bool = same_as(TrainConfig, "trust_remote_code")

    dataset: str | None = _questions(
        "Comma-separated: gsm8k, math500, aime24, aime25, deepmath, any hub id, or a local folder, Parquet or JSONL "
        "file.",
        fixed=True,
    )
    dataset_path: str | None = same_as(TrainConfig, "dataset_path", group="questions")
    dataset_split: str | None = _questions("Split to read. Default: test, or what a set known by name has.", fixed=True)
    dataset_config: str | None = same_as(TrainConfig, "dataset_config", group="questions")
    question_column: str | None = _questions(
        "Column to ask. Default: question, problem, prompt or messages.", fixed=True
    )
    answer_column: str | None = _questions(
        "Column of the reference answers. Default: final_answer or answer.", fixed=True
    )
    prompts_file: str | None = _questions(
        "Text file with one prompt a line, or JSONL, JSON, CSV, TSV or Parquet with `prompt`, `messages` or "
        "`conversations`, and perhaps `answer` and `tools`.",
        fixed=True,
    )
    limit: int | None = _questions(
        "Most questions of each source. Default: all; of deepmath 500.", fixed=True, within=FROM_1
    )
    answers: str = _questions(
        "When an answer is right. math: equal to the reference as mathematics (math-verify). exact: the same words, "
        'after "answer:" or on the last line. contains: the reference\'s words are somewhere in it.',
        MATH,
        choices=(MATH, EXACT, CONTAINS),
        fixed=True,
    )
    tasks: str | None = _questions("Comma-separated tasks of lm-evaluation-harness: ifeval, mmlu, ….")
    tasks_path: str | None = _questions("Folder with task files for lm-evaluation-harness, besides its own.")

    prompt_template: str | None = _prompts(
        "Text around each question, with {question} where it goes. Default: a request to put the answer into \\boxed{} "
        "where --answers is math and there are answers, else the question alone.",
        fixed=True,
    )
    system_prompt: str | None = same_as(TrainConfig, "system_prompt")
    chat_template: str = same_as(TrainConfig, "chat_template")
    chat_template_kwargs: str | None = same_as(TrainConfig, "chat_template_kwargs")
    keep_control_tokens: bool = same_as(TrainConfig, "keep_control_tokens")
    template_date: str | None = _prompts(
        "Date (2026-01-31) for a chat template with a clock in it. Default: today.", fixed=True
    )

    samples: int = _sampling(
        "Answers to each question; more than one needs --temperature.", 1, fixed=True, within=FROM_1
    )
    temperature: float = _sampling("Sampling temperature of the answers; 0: greedy.", 0.0, fixed=True, within=OR_GREEDY)
    top_p: float = _sampling("Nucleus of the answers' sampling.", 1.0, fixed=True, within=SHARE)
    max_new_tokens: int = same_as(TrainConfig, "max_new_tokens")
    seed: int = _sampling(
        "Seed of the samples, and of the run whose held-out part of deepmath is asked.", 0, fixed=True, within=SEED
    )
    rollouts: str = _sampling(
        "What samples. hf: our own loop, the same samples for any batch size. vllm: the server of --rollouts_url. "
        "auto: vllm when there is a --rollouts_url, else hf.",
        "auto",
        choices=tuple(BEHIND_URL),
    )
    rollouts_url: str | None = _sampling(
        "Comma-separated addresses of vLLM servers that serve MODEL. An API key is read from "
        "LOCAL_DISTILL_ROLLOUTS_API_KEY."
    )
    sampling_batch_size: int = _sampling(
        "Most completions under way at a time, after which they are written down; never changes a result of hf.",
        128,
        within=FROM_1,
    )

    output: str | None = _output(
        "Folder of answers.jsonl, reverse_kl.jsonl and results.json. Default: evals/<date-time>."
    )

    server_timeout: float = same_as(TrainConfig, "server_timeout")
    server_patience: float = same_as(TrainConfig, "server_patience")
    server_concurrency: int = same_as(TrainConfig, "server_concurrency")

    def __post_init__(self) -> None:
        refuse_empty(self, ("system_prompt",))
        check_ranges(self)
        _check_combinations(self)

    @property
    def measures_kl(self) -> bool:
        """Tell whether there is a teacher to measure against."""
        return bool(self.teacher_model or self.teacher_url)

    @property
    def teacher_under_adapter(self) -> bool:
        """Tell whether the teacher is the model under each adapter."""
        return self.teacher_model == SELF

    @property
    def as_trained(self) -> TrainConfig | None:
        """Return the settings with which a run learns from the same teacher; None where there is none."""
        if not self.measures_kl:
            return None
        return TrainConfig(
            student_model="MODEL",
            use_lora=self.teacher_under_adapter,
            teacher_backend="self" if self.teacher_under_adapter else "auto",
            teacher_model="" if self.teacher_under_adapter else self.teacher_model or "",
            teacher_url=self.teacher_url,
            loss="policy_gradient",  # for which a server is asked for no top tokens
            server_timeout=self.server_timeout,
            server_patience=self.server_patience,
            server_concurrency=self.server_concurrency,
        )

    @property
    def samples_by_server(self) -> bool:
        """Tell whether a vLLM server samples."""
        return bool(self.rollouts_url)


def _check_combinations(settings: EvalSettings) -> None:
    if twice := [model for model in settings.models if settings.models.count(model) > 1]:
        raise UserError(f"MODEL: {twice[0]} is given twice; give each model once")
    if not (settings.dataset or settings.prompts_file or settings.tasks):
        raise UserError(
            "--dataset: not given, needs questions to ask: gsm8k, math500, a file, …; or give --prompts_file or --tasks"
        )
    if settings.samples > 1 and settings.temperature == 0:
        raise UserError(
            f"--samples: {settings.samples} given with greedy decoding, where all are the same; add --temperature 0.6, "
            "or drop it"
        )
    behind_url, name = BEHIND_URL[settings.rollouts], settings.rollouts
    if settings.rollouts_url and behind_url is False:
        raise UserError(f"--rollouts_url: given with --rollouts {name}, needs vllm; drop one of them")
    if behind_url and not settings.rollouts_url:
        raise UserError(
            f"--rollouts {name}: needs --rollouts_url, the address of a vLLM server that serves MODEL; add it"
        )
    if settings.teacher_url and settings.teacher_under_adapter:
        raise UserError("--teacher_url: given with --teacher_model self, the model under the adapter; drop one of them")
    if settings.tasks_path and not settings.tasks:
        raise UserError("--tasks_path: given without --tasks, the names of the tasks in it; add them, or drop it")
    if settings.prompt_template is not None and "{question}" not in settings.prompt_template:
        raise UserError(
            f"--prompt_template: {settings.prompt_template!r} has no {{question}} in it, where the "
            "question goes; add it"
        )
