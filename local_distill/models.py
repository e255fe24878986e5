"""Loading: configurations and tokenizers first, which costs nothing, then weights in the right precision."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
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
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from local_distill.errors import UserError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
LOCAL_OR_REACHABLE = "give a local model folder, or a hub id (owner/name) that can be reached"


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
        """The weights in ``dtype``, without dropout, in eval mode, on the CPU.

        Raises UserError unless there is a weight for every parameter: transformers would draw the others at random.
        """
        with _one_line(self.flag, self.path, "its weights"):
            model, found = AutoModelForCausalLM.from_pretrained(
                self.path,
                config=self.config,
                dtype=dtype,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which then are in the loading info, as the missing ones are
            )
        absent = sorted(str(name) for name in found["missing_keys"])
        misshapen = sorted(str(name) for name, *_ in found["mismatched_keys"])
        if absent or misshapen:
            what = [
                f"{len(names)} {problem}, such as {names[0]}"
                for names, problem in ((absent, "are missing"), (misshapen, "have another shape"))
                if names
            ]
            raise UserError(
                f"{self.flag} {self.path}: its weights do not fit its config.json: {' and '.join(what)}; "
                "the files do not belong together, download the model again"
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
    path = str(Path(path).expanduser()) if path.startswith("~/") else path
    folder = Path(path)
    if folder.is_dir():
        _check_folder(flag, folder)
    elif folder.exists():
        raise UserError(f"{flag} {path}: a file, needs a model folder or a hub id")
    elif path.startswith((".", "/")) or path.endswith("/") or path.count("/") > 1:
        raise UserError(f"{flag} {path}: no such folder; give a local model folder or a hub id (owner/name)")
    with _one_line(flag, path, "its configuration"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not (trust_remote_code or _is_causal(config)):
        raise UserError(f"{flag} {path}: {config.model_type} is not a causal language model; choose one that is")
    with _one_line(flag, path, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    with _one_line(flag, path, "its generation_config.json"):
        generation = _generation_settings(path, config)
    _switch_off_dropout(config)
    return ModelFiles(flag, path, config, tokenizer, generation, trust_remote_code)


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze the model and give it a trainable low-rank adapter in float32, the same on every process, in eval mode.

    Raises UserError when the model lacks one of the modules, or when one is not a linear layer inside of it.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_target_modules(model, settings.target_modules),
    )
    torch.manual_seed(seed)
    with _peft_without_warnings(), model.device:  # a skeleton's adapter takes no memory either
        return get_peft_model(model, config).eval()


def load_lora(model: PreTrainedModel, folder: Path) -> nn.Module:
    """The model with the trainable adapter saved in ``folder``, in eval mode."""
    from peft import PeftModel

    with _peft_without_warnings():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of its LoRA wrapper when it has one."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _check_folder(flag: str, folder: Path) -> None:
    """Raise UserError when a local folder lacks a file that a model has, or has safetensors that are cut short."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{flag} {folder}: a LoRA adapter, needs a whole model; merge it into its base with peft's "
                "merge_and_unload and save_pretrained, and give that folder"
            )
        raise UserError(f"{flag} {folder}: not a model folder, it has no config.json; give a transformers model folder")
    for file in _weight_files(flag, folder):
        try:
            with safe_open(file, framework="pt"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError) as error:
            found = f"is damaged or cut short at {file.stat().st_size} bytes" if file.exists() else "is not there"
            raise UserError(f"{flag} {folder}: {file.name} {found}; download the model again") from error
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise UserError(
            f"{flag} {folder}: no tokenizer in it; copy tokenizer.json and tokenizer_config.json there "
            "from the model that it was made from"
        )


def _weight_files(flag: str, folder: Path) -> list[Path]:
    """The safetensors files that transformers will read; none where the weights are in another format."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if index.is_file():
        with _one_line(flag, str(folder), index.name):
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
    if any(folder.glob("pytorch_model*.bin")):
        return []
    raise UserError(f"{flag} {folder}: no weights in it; needs {SAFE_WEIGHTS_NAME}, download the model again")


def _is_causal(config: PretrainedConfig) -> bool:
    """Whether transformers has a decoder for this configuration that sees only what came before."""
    models = AutoModelForCausalLM._model_mapping
    if type(config) not in models or config.is_encoder_decoder:
        return False
    # BERT and its kin have a language-modelling class besides, but see both ways unless they say that they do not.
    sees_both_ways = getattr(config, "is_decoder", True) is False
    return not sees_both_ways or models[type(config)].__name__ in (config.architectures or ())


def _target_modules(model: PreTrainedModel, names: str) -> str | list[str]:
    """``--lora_target_modules`` as peft takes it, each name found to be a linear layer other than the head."""
    if names == "all-linear":
        return names
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if _is_linear(module) and module is not head]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if not any(f".{each}".endswith(f".{name}") for each in linear)]
    if unknown or not wanted:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"--lora_target_modules {names}: {', '.join(unknown) or 'an empty name'} is no linear layer inside this "
            f"model, which has {', '.join(known)}; choose from these, or all-linear"
        )
    return wanted


@contextmanager
def _peft_without_warnings() -> Iterator[None]:
    """Hold back what peft and transformers tell each other's authors, about every model alike."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _switch_off_dropout(config: PretrainedConfig) -> None:
    """The student must be scored as it samples: noise in its log-probs would read as divergence from the teacher."""
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if "drop" in name and isinstance(value, float):  # attention_dropout, resid_pdrop, layerdrop
            setattr(text, name, 0.0)


def _generation_settings(path: str, config: PretrainedConfig) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a folder need not have one; the model's configuration then says when to stop
        if (Path(path) / GENERATION_CONFIG_NAME).exists():
            raise
        return GenerationConfig.from_model_config(config)


@contextmanager
def _one_line(flag: str, path: str, part: str) -> Iterator[None]:
    """Turn whatever transformers raises for a missing, unreachable or broken model into one line."""
    try:
        yield
    except Exception as error:  # a file of somebody else's can break its reader in any way
        local = Path(path).is_dir()
        remedy = "mend it, or download the model again" if local else LOCAL_OR_REACHABLE
        raise UserError(f"{flag} {path}: {part} cannot be loaded ({_in_one_line(error)}); {remedy}") from error


def _in_one_line(error: Exception, width: int = 240) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines and lines[0].endswith(".") else " ".join(lines)  # what follows a sentence is advice
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"  # alone, "'hidden_size'" says little
    return reason if len(reason) <= width else reason[: width - 1] + "…"
