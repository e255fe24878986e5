"""Every setting of a run, in one flat, documented, self-checking dataclass.

The command line, the YAML files, ``--help`` and docs/flags.md are all made from these fields, so a
setting is written down once. Only the entry point reads a TrainConfig; the parts of the program
are handed the values they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from local_distill.errors import UserError

LORA_LEARNING_RATE = 1e-4
FULL_LEARNING_RATE = 1e-5
DATASETS = ("deepmath", "tulu3")
SAMPLED_LOSSES = ("policy_gradient", "importance_sampling", "ppo")
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
LARGEST = 2**31 - 1
"""Of whole numbers, so that their products still fit the machine."""
LOWEST_TEMPERATURE = 1e-3
"""Below it, logits divided by the temperature leave what float32 can hold."""


def option(group: str, help: str, default: Any = None, *, choices: tuple[str, ...] = (), fixed: bool = False) -> Any:
    """One setting.

    group: the heading of ``--help`` it stands under. choices: the only values it may take.
    fixed: a resumed run must have the same value, or it would be another run.
    """
    return field(default=default, metadata={"group": group, "help": help, "choices": choices, "fixed": fixed})


_model = partial(option, "models")
_prompts = partial(option, "prompts")
_sampling = partial(option, "sampling")
_objective = partial(option, "objective")
_training = partial(option, "training")
_lora = partial(option, "LoRA")
_output = partial(option, "output and evaluation")
_tracking = partial(option, "experiment trackers")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run. Raises UserError when they contradict each other."""

    student_model: str = _model("Hub id or local folder of the model to train.", "", fixed=True)
    teacher_model: str = _model("Hub id or local folder of the model to learn from.", "", fixed=True)
    dtype: str = _model(
        "Precision of the matrix products. auto: bf16 on a GPU that has it, else fp32. Full fine-tuning keeps "
        "fp32 master weights; the teacher, and the frozen base under LoRA, are held in this precision.",
        "auto",
        choices=("auto", "bf16", "fp16", "fp32"),
        fixed=True,
    )
    gradient_checkpointing: bool = _model(
        "Recompute the student's activations in backward: slower, with far less memory.", False
    )
    teacher_ds_zero3: bool = _model(
        "Shard the teacher over all processes with DeepSpeed ZeRO-3, for inference only.", False
    )
    teacher_ds_config: str | None = _model("DeepSpeed JSON for the sharded teacher, instead of the built-in one.")
    trust_remote_code: bool = _model("Run model code that a hub repository brings along.", False)

    dataset: str | None = _prompts(
        "deepmath (zwhe99/DeepMath-103K), tulu3 (allenai/tulu-3-sft-mixture), any hub id, or a local folder, "
        "JSONL or Parquet file (these need --prompt_column). With no source named, built-in prompts are used.",
        fixed=True,
    )
    dataset_path: str | None = _prompts("Local copy of the data set that --dataset names.")
    dataset_split: str = _prompts("Split to read.", "train", fixed=True)
    prompt_column: str | None = _prompts("Column that holds the prompt: text, or a list of chat messages.", fixed=True)
    prompts_file: str | None = _prompts(
        "Text file with one prompt a line, or JSONL with `prompt` or `messages`.", fixed=True
    )
    max_prompt_tokens: int = _prompts(
        "Longer prompts are left out, and counted aloud (tokens, template included).", 1024, fixed=True
    )
    chat_template: str = _prompts(
        "Render prompts with the chat template. auto: when the tokenizer has one.",
        "auto",
        choices=("auto", "on", "off"),
        fixed=True,
    )
    system_prompt: str | None = _prompts("System message put before each prompt.", fixed=True)
    chat_template_kwargs: str | None = _prompts(
        "JSON object handed to the chat template, such as '{\"enable_thinking\": false}' for Qwen3.", fixed=True
    )

    batch_size: int = _sampling("Prompts a step, over all processes.", 8, fixed=True)
    group_size: int = _sampling("Rollouts of each prompt.", 4, fixed=True)
    max_new_tokens: int = _sampling("Longest completion (tokens).", 512, fixed=True)
    temperature: float = _sampling("Sampling temperature.", 0.8)
    top_p: float = _sampling("Nucleus: sample from the smallest set of tokens with this much probability.", 0.95)
    stop_tokens: str = _sampling(
        "Whose end-of-sequence tokens end a completion, when student and teacher differ.",
        "both",
        choices=("both", "student", "teacher"),
        fixed=True,
    )
    rollouts: str = _sampling(
        "What samples. hf: our own loop, the same samples for any batch size and number of processes. continuous: "
        "transformers' continuous batching, made for GPUs.",
        "hf",
        choices=("hf", "continuous"),
    )
    sampling_batch_size: int = _sampling(
        "hf: most rollouts that one process samples at a time; halved when a GPU runs out of memory.", 128
    )

    loss: str = _objective(
        "What is minimised; docs/method.md has the formulas. The first three weigh the sampled tokens by their "
        "advantage; the others compare the whole distributions of student and teacher at every position.",
        "policy_gradient",
        choices=(*SAMPLED_LOSSES, *DIVERGENCES),
    )
    kl_coef: float = _objective(
        "Advantage = −kl_coef · (log p_student − log p_teacher), per token; a factor of the other losses.", 1.0
    )
    jsd_beta: float = _objective(
        "jsd: β, the teacher's share of the mixture; towards 0 like forward KL, towards 1 like reverse KL.", 0.5
    )
    top_k: int | None = _objective(
        "reverse_kl, forward_kl, jsd: compare this many top tokens, and all others as one. Default: every token."
    )
    top_k_support: str = _objective("Whose top tokens --top_k takes.", "teacher", choices=("teacher", "student"))
    kl_discount: float = _objective("γ: each token also answers for what follows it, by γ per token; 0 is off.", 0.0)
    ratio_cap: float = _objective("importance_sampling: cap on the ratio student / sampler.", 10.0)
    ppo_clip: float = _objective("ppo: ε, the ratio is clipped to 1 ± ε.", 0.2)

    steps: int = _training("Steps to run in all; a resumed run goes on to this number.", 100)
    learning_rate: float | None = _training(
        f"Peak learning rate. Default {LORA_LEARNING_RATE:g} with LoRA, {FULL_LEARNING_RATE:g} without.", None
    )
    weight_decay: float = _training("AdamW weight decay, on matrices only.", 0.0)
    lr_scheduler: str = _training(
        "Learning rate after the warm-up.", "constant", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = _training("Steps over which the learning rate rises from zero.", 0)
    max_grad_norm: float = _training("Clip the gradient to this global norm; 0 is off.", 1.0)
    grad_accum: int = _training(
        "Micro-batches that each process's rollouts go through forward and backward in, before one optimizer "
        "update: the same result with less memory.",
        1,
    )
    microbatch_tokens: int | None = _training(
        "Most tokens of a micro-batch, padding included; there are at least --grad_accum of them. Bounds the memory of "
        "training whatever the batch size. Default: no bound; where one process trains and its GPU runs out of memory, "
        "the step is done again with half as much at a time, and so are the next ones."
    )
    num_substeps: int = _training(
        "Optimizer updates for each sampled batch, each on its own share of the prompts; from the second on, the "
        "policy has moved and importance sampling corrects for it.",
        1,
        fixed=True,
    )
    seed: int = _training("Seed of the prompt order, the samples and the adapter's start.", 0, fixed=True)

    use_lora: bool = _lora("Train a low-rank adapter and freeze the model.", False, fixed=True)
    lora_r: int = _lora("Rank.", 32, fixed=True)
    lora_alpha: float = _lora("Scale: the adapter's output is multiplied by alpha / r.", 64, fixed=True)
    lora_dropout: float = _lora("Dropout in the adapter.", 0.0, fixed=True)
    lora_target_modules: str = _lora(
        "Comma-separated module names; all-linear works for every architecture.", "all-linear", fixed=True
    )

    output_dir: str | None = _output("Folder of the run. Default: runs/<date-time>.")
    save_every: int = _output("Steps between checkpoints; 0 saves only at the end.", 50)
    keep_checkpoints: int = _output("Newest checkpoints that are kept.", 2)
    resume: str | None = _output(
        "Go on from the newest whole checkpoint in --output_dir, or from the step folder given here."
    )
    eval_every: int = _output("Steps between evaluations on held-out prompts; 0: only before and after.", 25)
    eval_prompts: int | None = _output(
        "Prompts held out for evaluation and never trained on. Default: 16, or a quarter of a small source.",
        fixed=True,
    )
    profile: int = _output(
        "Profile this many steps after the first, into profile/ of the run: a trace for chrome://tracing or Perfetto "
        "and a table of where the time went; 0 is off.",
        0,
    )

    wandb_project: str | None = _tracking("Log to this Weights & Biases project.")
    wandb_name: str | None = _tracking("Name of the run there.")
    wandb_mode: str = _tracking("How Weights & Biases logs.", "online", choices=("online", "offline", "disabled"))
    trackers: str | None = _tracking(
        "Comma-separated accelerate trackers besides: tensorboard, trackio, swanlab, mlflow, … "
        "metrics.jsonl is always written."
    )

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            rate = LORA_LEARNING_RATE if self.use_lora else FULL_LEARNING_RATE
            object.__setattr__(self, "learning_rate", rate)
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        for name in ("student_model", "teacher_model"):
            if not getattr(self, name):
                raise UserError(f"--{name}: not given, needs a hub id or a local folder")
        for name, value in vars(self).items():
            if value == "" and name not in _MAY_BE_EMPTY:  # as from a shell variable that is not set
                raise UserError(f"--{name}: empty text given; give a value, or leave the flag out")
        for name in _AT_LEAST_ONE:
            _require(name, getattr(self, name), lambda v: v >= 1, "at least 1")
        for name in _AT_LEAST_ZERO:
            _require(name, getattr(self, name), lambda v: v >= 0, "0 or more")
        _require("seed", self.seed, lambda v: v >= 0, "0 or more", most=2**63 - 1)
        for name in ("lora_alpha", "ratio_cap"):
            _require(name, getattr(self, name), lambda v: v > 0, "above 0")
        needed = f"at least {LOWEST_TEMPERATURE:g}; 0.01 is nearly greedy"
        _require("temperature", self.temperature, lambda v: v >= LOWEST_TEMPERATURE, needed)
        _require("learning_rate", self.learning_rate or 0.0, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _require("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _require("kl_discount", self.kl_discount, lambda v: 0 <= v <= 1, "between 0 and 1")
        _require("lora_dropout", self.lora_dropout, lambda v: 0 <= v < 1, "at least 0 and below 1")
        _require("ppo_clip", self.ppo_clip, lambda v: 0 < v < 1, "above 0 and below 1")
        _require("jsd_beta", self.jsd_beta, lambda v: 0 < v < 1, "above 0 and below 1")
        for name in ("top_k", "microbatch_tokens"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), lambda v: v >= 1, "at least 1")
        if self.eval_prompts is not None:
            _require("eval_prompts", self.eval_prompts, lambda v: v >= 0, "0 or more")

    def _check_combinations(self) -> None:
        if self.dataset and self.prompts_file:
            raise UserError("--dataset and --prompts_file: both given; prompts come from one source, drop one of them")
        if self.dataset_path and not self.dataset:
            raise UserError(
                "--dataset_path: given without --dataset; name the set that it is a copy of "
                f"({' or '.join(DATASETS)}), or give the path as --dataset with --prompt_column"
            )
        if self.prompt_column and not self.dataset:
            raise UserError(
                "--prompt_column: given without --dataset, whose column it names; add it, or drop the column"
            )
        if self.system_prompt is not None and self.chat_template == "off":
            raise UserError("--system_prompt: needs the chat template, which --chat_template off turns off; drop one")
        if self.chat_template_kwargs and self.chat_template == "off":
            raise UserError(
                "--chat_template_kwargs: needs the chat template, which --chat_template off turns off; drop one"
            )
        self._check_loss()
        if self.teacher_ds_config and not self.teacher_ds_zero3:
            raise UserError("--teacher_ds_config: only used with --teacher_ds_zero3; add it, or drop the file")
        if self.wandb_name and not (self.wandb_project or "wandb" in (self.trackers or "")):
            raise UserError(
                "--wandb_name: given without --wandb_project, so nothing is logged there; add it, or drop the name"
            )
        if self.profile and self.profile >= self.steps:
            raise UserError(
                f"--profile: {self.profile} steps after the first given with --steps {self.steps}; lower it, or run "
                "more steps"
            )
        if self.num_substeps > self.batch_size:
            raise UserError(
                f"--num_substeps: {self.num_substeps} given with --batch_size {self.batch_size}; "
                "each substep needs a prompt of its own, lower it"
            )

    def _check_loss(self) -> None:
        if self.loss in SAMPLED_LOSSES:
            if self.top_k is not None:
                raise UserError(
                    f"--top_k: given with --loss {self.loss}, which looks at the sampled token alone; drop it, "
                    f"or use {', '.join(DIVERGENCES)}"
                )
            return
        if self.kl_discount:
            raise UserError(
                f"--kl_discount: {self.kl_discount:g} given with --loss {self.loss}, which has no advantages to "
                "discount; drop it, or use a sampled-token loss"
            )
        if self.teacher_ds_zero3 and (self.top_k is None or self.top_k_support == "student"):
            raise UserError(
                f"--loss {self.loss}: a teacher sharded by --teacher_ds_zero3 cannot hand over its whole distribution; "
                "add --top_k 64 with the teacher's support, use policy_gradient, or drop --teacher_ds_zero3"
            )


_AT_LEAST_ONE = (
    "batch_size", "group_size", "max_new_tokens", "max_prompt_tokens", "sampling_batch_size",
    "steps", "grad_accum", "num_substeps", "lora_r", "keep_checkpoints",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "kl_coef", "weight_decay", "warmup_steps", "max_grad_norm", "save_every", "eval_every", "profile",
)  # fmt: skip
_MAY_BE_EMPTY = ("system_prompt", "wandb_name", "trackers")


def _require(name: str, value: float, holds: Callable[[float], bool], needed: str, most: int = LARGEST) -> None:
    if isinstance(value, float):
        given, fits = f"{value:g}", math.isfinite(value)
        needed = needed if fits else f"a finite number, {needed}"
    else:
        given, fits = str(value), value <= most
        needed = needed if fits else f"at most {most}"
        given = given if len(given) <= 20 else f"a number of {len(given)} digits"
    if not (fits and holds(value)):
        raise UserError(f"--{name}: {given} given, needs to be {needed}")
