"""What other trainers call our settings: TRL, axolotl, ms-swift, verl and tinker-cookbook, for who comes from there.

A name leads to a setting of ours, or to a sentence where there is no setting that means the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple


class Ours(NamedTuple):
    """A setting of theirs is this one here. name: of ours, without dashes. more: what is different about it."""

    name: str
    more: str = ""


_SAME: Mapping[str, tuple[str, ...]] = {
    "student_model": (
        "model", "student", "model_name", "model_name_or_path", "student_model_name_or_path", "base_model",
        "model_id", "student_name_or_path", "student_path", "model_path", "actor_rollout_ref.model.path",
        "pretrained_model", "student_model_path",
    ),
    "teacher_model": (
        "teacher", "teacher_name", "teacher_model_name_or_path", "teacher_name_or_path", "teacher_path",
        "teacher_model_path", "teacher_checkpoint", "ref_model", "reward_model_path", "teacher_model_id",
        "model_path",
    ),
    "teacher_url": ("teacher_server_url", "teacher_model_server_url", "teacher_model_server", "teacher_base_url"),
    "teacher_ds_zero3": ("teacher_deepspeed",),
    "dataset": ("dataset_name", "datasets", "train_dataset", "dataset_id", "dataset_name_or_path"),
    "prompts_file": ("train_file", "train_files", "data_path", "prompts", "prompt_file"),
    "dataset_split": ("dataset_train_split", "split", "train_split"),
    "dataset_config": ("dataset_config_name", "subset", "dataset_subset"),
    "prompt_column": ("dataset_text_field", "prompt_key", "prompt_field"),
    "max_prompt_tokens": ("max_prompt_length", "prompt_length", "max_input_length"),
    "system_prompt": ("system", "system_message"),
    "chat_template_kwargs": ("template_kwargs", "apply_chat_template_kwargs"),
    "batch_size": (
        "train_batch_size", "generation_batch_size", "bs", "groups_per_batch", "global_batch_size",
        "rollout_batch_size",
    ),
    "group_size": (
        "num_generations", "actor_rollout_ref.rollout.n", "num_rollouts", "rollouts_per_prompt", "num_samples",
        "n_samples_per_prompt", "samples_per_prompt",
    ),
    "max_new_tokens": (
        "max_completion_length", "max_tokens", "max_response_length", "response_length", "max_seq_len",
        "max_generation_length", "cutoff_len",
    ),
    "rollouts": ("vllm_mode", "actor_rollout_ref.rollout.name"),
    "rollouts_url": ("vllm_server_base_url", "vllm_server_host", "vllm_server_url"),
    "rollouts_memory_share": ("vllm_gpu_memory_utilization", "gpu_memory_utilization"),
    "temperature": ("sampling_temperature",),
    "loss": ("loss_fn", "loss_type", "distillation_mode", "loss_mode"),
    "kl_coef": ("kl_penalty_coef", "kl_loss_coef", "distillation_coef"),
    "kl_discount": ("kl_discount_factor", "gamma"),
    "ppo_clip": ("epsilon", "clip_ratio", "cliprange"),
    "top_k": ("loss_top_k", "distillation_topk", "gkd_logits_topk", "topk"),
    "steps": ("max_steps", "num_steps", "total_steps", "max_step", "total_training_steps"),
    "learning_rate": ("lr", "peak_lr"),
    "lr_scheduler": ("lr_scheduler_type", "lr_schedule", "scheduler"),
    "weight_decay": ("wd",),
    "max_grad_norm": ("grad_clip", "gradient_clipping", "clip_grad"),
    "grad_accum": ("gradient_accumulation_steps", "grad_accum_steps", "accumulation_steps", "gradient_accumulation"),
    "microbatch_tokens": ("ppo_max_token_len_per_gpu", "max_tokens_per_microbatch"),
    "epochs_per_batch": ("num_iterations", "ppo_epochs"),
    "adam_beta2": ("beta2", "adam_b2"),
    "use_lora": ("use_peft", "lora", "peft", "qlora"),
    "lora_r": ("lora_rank", "r", "rank"),
    "lora_alpha": ("alpha",),
    "lora_target_modules": ("target_modules", "lora_target_linear"),
    "init_adapter": ("adapter_name_or_path", "adapters", "lora_model_dir", "lora_path", "peft_model_id"),
    "output_dir": (
        "out", "out_dir", "log_path", "save_dir", "default_local_dir", "output_path", "out_path",
    ),
    "resume": ("resume_from_checkpoint", "auto_resume_from_checkpoints", "resume_mode", "resume_from"),
    "save_every": ("save_steps", "save_freq", "checkpoint_every"),
    "keep_checkpoints": ("save_total_limit", "max_checkpoints", "max_actor_ckpt_to_keep"),
    "eval_every": ("eval_steps", "test_freq", "eval_freq"),
    "eval_prompts": ("val_set_size", "eval_size", "num_eval_prompts", "eval_batch_size"),
    "wandb_project": ("project_name", "wandb_project_name"),
    "wandb_name": ("run_name", "wandb_run_name", "experiment_name", "exp_name"),
    "seed": ("random_seed", "data_seed"),
    "trust_remote_code": ("trust_remote",),
    "gradient_checkpointing": ("activation_checkpointing", "enable_gradient_checkpointing"),
}  # fmt: skip
"""Our setting → what others call it."""
_BATCH = Ours("batch_size", "the prompts of a step over all processes; --microbatch_tokens bounds the memory")
_COMPLETION = Ours("max_new_tokens", "of the completion alone; --max_prompt_tokens is for the prompt")
_EPOCHS = Ours("steps", "a run is as long as its steps: one pass over N prompts takes N / batch_size of them")
_DTYPE = Ours("dtype", "auto, bf16, fp16 or fp32")
_LORA = Ours("use_lora", "a switch; without it all weights are trained")
_TRACKERS = Ours("trackers", "tensorboard, trackio, swanlab, mlflow; for Weights & Biases --wandb_project NAME")
_FEW_BITS = Ours("teacher_quantization", "4bit or 8bit; a student is not trained in few bits")
_DIFFERENT: Mapping[str, Ours] = {
    "per_device_train_batch_size": _BATCH,
    "per_gpu_train_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "max_length": _COMPLETION,
    "max_seq_length": _COMPLETION,
    "sequence_len": _COMPLETION,
    "enable_thinking": Ours("chat_template_kwargs", "as JSON: '{\"enable_thinking\": false}'"),
    "use_vllm": Ours("rollouts", "--rollouts vllm"),
    "warmup_ratio": Ours("warmup_steps", "in steps, not as a share of them"),
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "epochs": _EPOCHS,
    "total_epochs": _EPOCHS,
    "beta": Ours("jsd_beta", "for --loss jsd; reverse_kl and forward_kl are losses of their own"),
    "lmbda": Ours("teacher_share", "which is 1 - lmbda; by itself every completion is the student's own"),
    "seq_kd": Ours("teacher_share", "the share of a step's prompts that the teacher continues"),
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "fp32": _DTYPE,
    "torch_dtype": _DTYPE,
    "mixed_precision": _DTYPE,
    "precision": _DTYPE,
    "train_type": _LORA,
    "tuner_type": _LORA,
    "tuner_backend": _LORA,
    "adapter": Ours("use_lora", "a switch; --init_adapter begins with an adapter that there is"),
    "report_to": _TRACKERS,
    "logger": _TRACKERS,
    "log_with": _TRACKERS,
    "load_in_4bit": _FEW_BITS,
    "load_in_8bit": _FEW_BITS,
    "quant_bits": _FEW_BITS,
}
_ACCELERATE = "several GPUs are asked for by accelerate launch (docs/several_gpus.md)"
_SDPA = "it is sdpa here, which takes the fast kernels"
_NO_SETTING: Mapping[str, str] = {
    "deepspeed": _ACCELERATE,
    "fsdp": _ACCELERATE,
    "num_gpus": _ACCELERATE,
    "num_processes": _ACCELERATE,
    "n_gpus_per_node": _ACCELERATE,
    "nproc_per_node": _ACCELERATE,
    "logging_steps": "every step is logged",
    "optim": "it is AdamW here",
    "optimizer": "it is AdamW here",
    "attn_implementation": _SDPA,
    "attn_impl": _SDPA,
    "flash_attention": _SDPA,
    "use_liger_kernel": "the head and the loss are computed in chunks here, without it",
    "wandb_entity": "set the variable WANDB_ENTITY",
    "rlhf_type": "on-policy distillation is what there is; drop it",
}


def _table() -> dict[str, Ours]:
    same = {name: Ours(ours) for ours, names in _SAME.items() for name in names}
    assert not same.keys() & _DIFFERENT.keys()
    return {**same, **_DIFFERENT}


_TABLE = _table()


def of_other_trainers(name: str, ours: Collection[str], by_place: bool = False, dashes: str = "--") -> str:
    """Say what a setting of another trainer is here; empty where it is none, or where ``ours`` have none for it.

    name: as it was written, without dashes before it. by_place: whether models are given by their place here.
    dashes: what our names stand behind where it was written.
    """
    written = name.replace("-", "_")
    for word in dict.fromkeys((written, written.rpartition(".")[2])):
        if word in ours and word != written:
            return f"not a setting of ours; it is {dashes}{word} here"
        if found := _TABLE.get(word):
            if found.name in ours:
                more = f" ({found.more})" if found.more else ""
                return f"not a setting of ours; it is {dashes}{found.name} here{more}"
            if found.name == "student_model" and by_place:
                return "not a setting of ours; models are given by their place, with no flag before them"
        elif word in _NO_SETTING and "student_model" in ours:
            return f"not a setting of ours; {_NO_SETTING[word]}"
    return ""
