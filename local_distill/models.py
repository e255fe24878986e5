"""Loading: configurations and tokenizers first, which costs nothing, then weights in the right precision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from local_distill.errors import UserError


@dataclass(frozen=True)
class ModelFiles:
    """A model before its weights: what can be checked without loading them."""

    flag: str
    path: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    trust_remote_code: bool

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens, or None where the architecture sets no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def skeleton(self) -> PreTrainedModel:
        """The model without memory for its weights: shapes alone, on the meta device."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, trust_remote_code=self.trust_remote_code)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The weights in ``dtype``, without dropout, in eval mode, on the CPU."""
        with _one_line(self.flag, self.path):
            model = AutoModelForCausalLM.from_pretrained(
                self.path, config=self.config, dtype=dtype, trust_remote_code=self.trust_remote_code
            )
        return model.eval()


@dataclass(frozen=True)
class LoraSettings:
    """A new adapter; see ``--lora_*``."""

    rank: int
    alpha: float
    dropout: float
    target_modules: str


def open_model(flag: str, path: str, trust_remote_code: bool) -> ModelFiles:
    """Configuration, tokenizer and generation settings of a hub id or a local folder.

    Raises UserError naming ``flag`` when it is not a causal language model that can be read.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{flag} {path}: not a model folder, it has no config.json; give a transformers model folder")
    if folder.is_file():
        raise UserError(f"{flag} {path}: is a file, needs a model folder or a hub id")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{flag} {path}: there is no such folder; give a local model folder or a hub id")
    with _one_line(flag, path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if type(config) not in AutoModelForCausalLM._model_mapping and not trust_remote_code:
        raise UserError(f"{flag} {path}: {config.model_type} is not a causal language model; choose one that is")
    _switch_off_dropout(config)
    return ModelFiles(flag, path, config, tokenizer, _generation_settings(path, config), trust_remote_code)


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze the model and give it a trainable low-rank adapter in float32, the same on every process."""
    from peft import LoraConfig, get_peft_model

    names = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names if names == "all-linear" else [name.strip() for name in names.split(",")],
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        known = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})
        raise UserError(
            f"--lora_target_modules {names}: no such modules; this model has {', '.join(known)}, or use all-linear"
        ) from error


def load_lora(model: PreTrainedModel, folder: Path) -> nn.Module:
    """The model with the trainable adapter saved in ``folder``."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of its LoRA wrapper when it has one."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _switch_off_dropout(config: PretrainedConfig) -> None:
    """The student must be scored as it samples: noise in its log-probs would read as divergence from the teacher."""
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(text, name, 0.0)


def _generation_settings(path: str, config: PretrainedConfig) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a folder need not have one; the model's configuration then says when to stop
        return GenerationConfig.from_model_config(config)


@contextmanager
def _one_line(flag: str, path: str) -> Iterator[None]:
    """Turn what transformers raises for a missing, unreachable or broken model into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        reason: Any = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{flag} {path}: cannot be loaded ({reason[:200]}); "
            "give a local model folder, or a hub id that can be reached"
        ) from error
