"""Every setting of a run, in one flat, documented dataclass.

The command line, the YAML files, ``--help`` and docs/flags.md are all made from these fields, so a
setting is written down once. Only the entry point reads a TrainConfig; the parts of the program
are handed the values they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from local_distill.batch import TeacherView
from local_distill.config.builtin import (
    BUILTIN_LOSSES,
    BUILTIN_SAMPLERS,
    BUILTIN_TEACHERS,
    NAMED_SOURCES,
    NO_SOURCE,
    OTHER_SET,
    PROMPTS_FILE,
    OrOutside,
    is_outside,
)
from local_distill.config.parsing import option, setting_types
from local_distill.config.ranges import ABOVE_0, BELOW_1, BETWEEN, FROM_0, FROM_0_TO_1, FROM_1, SEED, SHARE, TEMPERATURE

AUTO_TOP_K = 64
"""Likeliest tokens that --loss auto compares where the teacher cannot hand over its whole distribution."""
LORA_LEARNING_RATE = 1e-4
FULL_LEARNING_RATE = 1e-5


_model = partial(option, "models")
_prompts = partial(option, "prompts")
_sampling = partial(option, "sampling")
_objective = partial(option, "objective")
_training = partial(option, "training")
_lora = partial(option, "LoRA")
_output = partial(option, "output and evaluation")
_servers = partial(option, "servers")
_tracking = partial(option, "experiment trackers")

_SETS = ", ".join(f"{name} ({source.hub_id})" if source.hub_id else name for name, source in NAMED_SOURCES.items())


@dataclass(frozen=True, kw_only=True)
class TrainFields:
    """One run is set up by these, as they are written down; TrainConfig checks them."""

    student_model: str = _model("Hub id or local folder of the model to train.", "", fixed=True)
    teacher_model: str = _model(
        "Hub id or local folder of the model to learn from. Behind --teacher_url: the name that it is served by, if "
        "there are several. Not given with --teacher_backend self.",
        "",
        fixed=True,
    )
    teacher_backend: str = _model(
        "Where the teacher is. local: whole in each process. zero3: sharded over them, as --teacher_ds_zero3. server: "
        "behind --teacher_url. self: the student without its adapter, no second model. auto: server when there is a "
        "--teacher_url, else zero3 or local. package.module:name: your own (docs/extending.md).",
        "auto",
        choices=OrOutside(("auto", *BUILTIN_TEACHERS)),
        fixed=True,
    )
    teacher_url: str | None = _model(
        "Comma-separated addresses of vLLM or SGLang servers that all serve the teacher. An API key is read from "
        "LOCAL_DISTILL_TEACHER_API_KEY."
    )
    teacher_offload: str = _model(
        "cpu: the teacher's weights stay in the machine's memory and pass through the GPU layer by layer while it "
        "scores.",
        "none",
        choices=("none", "cpu"),
    )
    teacher_quantization: str = _model(
        "Hold the teacher in 4 or 8 bits a weight (bitsandbytes, NVIDIA GPUs).",
        "none",
        choices=("none", "4bit", "8bit"),
        fixed=True,
    )
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
        f"{_SETS}, any hub id, or a local folder or JSON, JSONL, CSV, TSV or Parquet file (these need "
        "--prompt_column), or a source of your own: package.module:name. With no source named, built-in "
        "prompts are used.",
        fixed=True,
    )
    dataset_path: str | None = _prompts("Local copy of the data set that --dataset names.")
    dataset_split: str = _prompts("Split to read.", "train", fixed=True)
    dataset_config: str | None = _prompts("Configuration to read, of a data set that has several.", fixed=True)
    prompt_column: str | None = _prompts("Column that holds the prompt: text, or a list of chat messages.", fixed=True)
    prompts_file: str | None = _prompts(
        "Text file with one prompt a line, or JSONL, JSON, CSV, TSV or Parquet with `prompt` (text or chat messages), "
        "`messages` or `conversations`, or a --prompt_column; `tools` beside them go to the chat template.",
        fixed=True,
    )
    max_prompt_tokens: int = _prompts(
        "Longer prompts are left out, and counted aloud (tokens, template included).", 1024, fixed=True, within=FROM_1
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
    keep_control_tokens: bool = _prompts(
        "Control tokens that are spelled in a prompt, such as <|im_end|>, are control tokens; otherwise they are "
        "ordinary text, and counted aloud.",
        False,
        fixed=True,
    )
    template_date: str | None = _prompts(
        "Date (2026-01-31) for a chat template with a clock in it. Default: the day on which the run began, which is "
        "kept with it.",
        fixed=True,
    )

    batch_size: int = _sampling("Prompts a step, over all processes.", 8, fixed=True, within=FROM_1)
    group_size: int = _sampling("Rollouts of each prompt.", 4, fixed=True, within=FROM_1)
    max_new_tokens: int = _sampling("Longest completion (tokens).", 512, fixed=True, within=FROM_1)
    start_new_tokens: int | None = _sampling(
        "Longest completion of the first step; it grows evenly to --max_new_tokens over the learning-rate schedule.",
        fixed=True,
        within=FROM_1,
    )
    temperature: float = _sampling("Sampling temperature.", 1.0, within=TEMPERATURE)
    top_p: float = _sampling(
        "Nucleus: sample from the smallest set of tokens with this much probability.", 1.0, within=SHARE
    )
    teacher_share: float = _sampling(
        "Share of a step's prompts that the teacher continues, where a loss over whole distributions compares the two.",
        0.0,
        fixed=True,
        within=FROM_0_TO_1,
    )
    teacher_share_steps: int | None = _sampling(
        "Steps over which --teacher_share falls evenly to 0. Default: it stays as it is.", fixed=True, within=FROM_1
    )
    stop_tokens: str = _sampling(
        "Whose end-of-sequence tokens end a completion, when student and teacher differ.",
        "both",
        choices=("both", "student", "teacher"),
        fixed=True,
    )
    rollouts: str = _sampling(
        "What samples. hf: our own loop, the same samples for any batch size and number of processes. continuous: "
        "transformers' continuous batching, made for GPUs. vllm: an engine inside these processes; with --rollouts_url "
        "the same as vllm_server. vllm_server: the servers of --rollouts_url. auto: vllm_server when there is a "
        "--rollouts_url, else hf. package.module:name: your own (docs/extending.md).",
        "auto",
        choices=OrOutside(("auto", *BUILTIN_SAMPLERS)),
    )
    rollouts_url: str | None = _sampling(
        "Comma-separated addresses of vLLM servers that serve the student; its new weights are sent to them after each "
        "update. An API key is read from LOCAL_DISTILL_ROLLOUTS_API_KEY."
    )
    rollouts_memory_share: float = _sampling(
        "vllm without --rollouts_url: share of each GPU's memory that the engine may fill while it is awake.",
        0.4,
        within=SHARE,
    )
    overlap: bool = _sampling(
        "Sample the next step's completions while this step trains: from weights that are one update old, which "
        "importance sampling corrects for. Needs --rollouts_url.",
        False,
        fixed=True,
    )
    sampling_batch_size: int = _sampling(
        "hf: most rollouts that one process samples at a time; halved when a GPU runs out of memory.",
        128,
        within=FROM_1,
    )

    loss: str = _objective(
        "What is minimised; docs/method.md has the formulas. policy_gradient, importance_sampling and ppo weigh the "
        "sampled tokens by their advantage; reverse_kl, forward_kl and jsd compare the whole distributions of student "
        "and teacher at every position. auto: reverse_kl, exact, or by 64 top tokens where the teacher gives no more; "
        "policy_gradient with --kl_discount. Another one of your own: package.module:name.",
        "auto",
        choices=OrOutside(("auto", *BUILTIN_LOSSES)),
    )
    kl_coef: float = _objective(
        "Advantage = −kl_coef · (log p_student − log p_teacher), per token; a factor of the other losses.",
        1.0,
        within=FROM_0,
    )
    jsd_beta: float = _objective(
        "jsd: β, the teacher's share of the mixture; towards 0 like forward KL, towards 1 like reverse KL.",
        0.5,
        within=BETWEEN,
    )
    top_k: int | None = _objective(
        "reverse_kl, forward_kl, jsd: compare this many top tokens, and all others as one. Default: every token.",
        within=FROM_1,
    )
    top_k_support: str = _objective("Whose top tokens --top_k takes.", "teacher", choices=("teacher", "student"))
    kl_discount: float = _objective(
        "γ: each token also answers for what follows it, by γ per token; 0 is off.", 0.0, within=FROM_0_TO_1
    )
    ratio_cap: float = _objective("importance_sampling: cap on the ratio student / sampler.", 10.0, within=ABOVE_0)
    ppo_clip: float = _objective("ppo: ε, the ratio is clipped to 1 ± ε.", 0.2, within=BETWEEN)

    steps: int = _training("Steps to run in all; a resumed run goes on to this number.", 100, within=FROM_1)
    learning_rate: float | None = _training(
        f"Peak learning rate. Default {LORA_LEARNING_RATE:g} with LoRA, {FULL_LEARNING_RATE:g} without.",
        None,
        within=SHARE,
    )
    adam_beta2: float = _training(
        "AdamW β₂: over how many updates, about 1 / (1 − β₂), squared gradients are averaged.", 0.999, within=BELOW_1
    )
    weight_decay: float = _training("AdamW weight decay, on matrices only.", 0.0, within=FROM_0)
    lr_scheduler: str = _training(
        "Learning rate after the warm-up.", "constant", choices=("constant", "linear", "cosine")
    )
    schedule_steps: int | None = _training(
        "Steps over which a linear or cosine schedule comes to its end, warm-up included; after it the rate stays. "
        "Default: --steps. A run that is gone on with for more steps keeps its schedule when this is its first "
        "--steps.",
        within=FROM_1,
    )
    warmup_steps: int = _training("Steps over which the learning rate rises from zero.", 0, within=FROM_0)
    max_grad_norm: float = _training("Clip the gradient to this global norm; 0 is off.", 1.0, within=FROM_0)
    grad_accum: int = _training(
        "Micro-batches that each process's rollouts go through forward and backward in, before one optimizer "
        "update: the same result with less memory.",
        1,
        within=FROM_1,
    )
    microbatch_tokens: int | None = _training(
        "Most tokens of a micro-batch, padding included, and a prompt that is read once for several rollouts counted "
        "once; there are at least --grad_accum of them. Bounds the memory of "
        "training whatever the batch size. Default: as many as keep the device busy (16384 on a GPU, 1024 on a "
        "processor), or as its free memory holds if that is less; where one process trains and memory runs out all the "
        "same, the step is done again with half as much at a time, and so are the next ones.",
        within=FROM_1,
    )
    num_substeps: int = _training(
        "Optimizer updates for each sampled batch, each on its own share of the prompts; from the second on, the "
        "policy has moved and importance sampling corrects for it.",
        1,
        fixed=True,
        within=FROM_1,
    )
    epochs_per_batch: int = _training(
        "Times that a step's rollouts are gone through, each with the updates of --num_substeps.",
        1,
        fixed=True,
        within=FROM_1,
    )
    force: bool = _training(
        "Go on, with a warning, where a run cannot fit the memory by its plan (local-distill plan).", False
    )
    seed: int = _training("Seed of the prompt order, the samples and the adapter's start.", 0, fixed=True, within=SEED)

    use_lora: bool = _lora("Train a low-rank adapter and freeze the model.", False, fixed=True)
    lora_r: int = _lora("Rank.", 32, fixed=True, within=FROM_1)
    lora_alpha: float = _lora("Scale: the adapter's output is multiplied by alpha / r.", 64, fixed=True, within=ABOVE_0)
    lora_dropout: float = _lora("Dropout in the adapter.", 0.0, fixed=True, within=BELOW_1)
    lora_target_modules: str = _lora(
        "Comma-separated module names; all-linear works for every architecture.", "all-linear", fixed=True
    )
    init_adapter: str | None = _lora(
        "Start from this adapter, a local folder or hub id, instead of a new one; it brings its own rank, scale and "
        "modules.",
        fixed=True,
    )

    output_dir: str | None = _output("Folder of the run. Default: runs/<date-time>.")
    save_every: int = _output("Steps between checkpoints; 0 saves only at the end.", 50, within=FROM_0)
    keep_checkpoints: int = _output("Newest checkpoints that are kept.", 2, within=FROM_1)
    resume: str | None = _output(
        "Go on from the newest whole checkpoint in --output_dir, or from the step folder given here."
    )
    eval_every: int = _output(
        "Steps between evaluations on held-out prompts; 0: only before and after.", 25, within=FROM_0
    )
    eval_prompts: int | None = _output(
        "Prompts held out for evaluation and never trained on. Default: 16, or a quarter of a small source.",
        fixed=True,
        within=FROM_0,
    )
    profile: int = _output(
        "Profile this many steps after the first, into profile/ of the run: a trace for chrome://tracing or Perfetto "
        "and a table of where the time went; 0 is off.",
        0,
        within=FROM_0,
    )

    server_timeout: float = _servers("Seconds that one request to a server may take.", 600.0, within=ABOVE_0)
    server_patience: float = _servers(
        "Seconds that a request is tried again for while its server is away or overloaded, before the run stops.",
        300.0,
        within=FROM_0,
    )
    server_concurrency: int = _servers("Most requests that one process has under way at a time.", 64, within=FROM_1)

    wandb_project: str | None = _tracking("Log to this Weights & Biases project.")
    wandb_name: str | None = _tracking("Name of the run there.")
    wandb_mode: str = _tracking("How Weights & Biases logs.", "online", choices=("online", "offline", "disabled"))
    trackers: str | None = _tracking(
        "Comma-separated accelerate trackers besides: tensorboard, trackio, swanlab, mlflow, … "
        "metrics.jsonl is always written."
    )

    @property
    def prompts_kind(self) -> str:
        """Return the name of the source of the prompts: a key of BUILTIN_SOURCES, or package.module:name."""
        if not self.dataset:
            return PROMPTS_FILE if self.prompts_file else NO_SOURCE
        if is_outside(self.dataset) and not Path(self.dataset).exists():
            return self.dataset
        return next((name for name, known in NAMED_SOURCES.items() if self.dataset in (name, known.hub_id)), OTHER_SET)

    @property
    def teacher_kind(self) -> str:
        """Return the name of the teacher's backend; ``--teacher_ds_zero3`` is another word for zero3."""
        if self.teacher_backend != "auto":
            return self.teacher_backend
        return "server" if self.teacher_url else "zero3" if self.teacher_ds_zero3 else "local"

    @property
    def teacher_gives(self) -> TeacherView:
        """Return how much of its distribution the teacher can give, which its record states."""
        if self.teacher_kind in BUILTIN_TEACHERS:
            return BUILTIN_TEACHERS[self.teacher_kind].gives
        gives: TeacherView = resolve_name(f"{self.teacher_kind}.gives")
        return gives

    @property
    def loss_name(self) -> str:
        """Return the loss that is named, or what auto takes: the reverse KL, with the least noise that there can be."""
        if self.loss != "auto":
            return self.loss
        by_sampled_tokens = self.kl_discount or self.teacher_gives == TeacherView.tokens
        return "policy_gradient" if by_sampled_tokens else "reverse_kl"

    @property
    def loss_top_k(self) -> int | None:
        """Return how many top tokens the loss compares; None for every token."""
        by_top_tokens = self.loss == "auto" and self.loss_name == "reverse_kl"
        if self.top_k is None and by_top_tokens and self.teacher_gives < TeacherView.whole_distribution:
            return AUTO_TOP_K
        return self.top_k

    @property
    def loss_in_words(self) -> str:
        """Name the loss, and where it was left to auto what that took."""
        if self.loss != "auto":
            return self.loss
        return f"auto ({self.loss_name}{f', {self.loss_top_k} top tokens' if self.loss_top_k else ''})"

    @property
    def rollouts_kind(self) -> str:
        """Return the name of the sampler's backend."""
        if self.rollouts_url and self.rollouts in ("auto", "vllm"):
            return "vllm_server"
        return "hf" if self.rollouts == "auto" else self.rollouts


def recorded_fields(settings: Mapping[str, object]) -> TrainFields:
    """Return a run's recorded settings, as far as they are known here; of text, also where a number stands there."""
    types = setting_types(TrainFields)
    known = {name: value for name, value in settings.items() if name in types}
    texts = {name: str(value) for name, value in known.items() if types[name] is str and value is not None}
    return TrainFields(**{**known, **texts})  # type: ignore[arg-type]


def recorded_loss(settings: Mapping[str, object]) -> str:
    """Return the loss of a run's recorded settings in words; empty where none is recorded.

    What auto took for a teacher from outside is not said: that teacher need not be on this machine.
    """
    if "loss" not in settings:
        return ""
    recorded = recorded_fields(settings)
    return recorded.loss_in_words if recorded.teacher_kind in BUILTIN_TEACHERS else recorded.loss
