"""Loading: configurations and tokenizers first, which costs nothing, then weights in the right precision."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from local_distill.errors import UserError
from local_distill.models import gguf_files
from local_distill.models.file_settings import context_length_of, make_neutral, make_savable, read_generation
from local_distill.models.hub import check_findable
from local_distill.models.loading_errors import in_one_line, local_folder
from local_distill.models.tying import tie_as_loaded, untie_as_filed
from local_distill.runs.manifest import check_as_written
from local_distill.runs.whole_files import expanded

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class ModelFiles:
    """A model is opened before its weights: this is what can be checked without loading them.

    flag, path: as given, for messages. gguf: the one file that holds everything, None for a folder or a hub id.
    notes: what a person should know of its files.
    """

    flag: str
    path: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    trust_remote_code: bool
    gguf: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def context_length(self) -> int | None:
        """Return the longest sequence in tokens, or None where the architecture sets no limit."""
        return context_length_of(self.config)

    def skeleton(self) -> PreTrainedModel:
        """Return the model without memory for its weights: shapes alone, on the meta device."""
        return skeleton_of(self.config, self.trust_remote_code)

    def with_weights_of(self, folder: Path) -> ModelFiles:
        """Return the same model, its weights to be read from a folder where they were saved: a checkpoint."""
        return replace(self, path=str(folder), gguf=None)

    def load(
        self, dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None, device: torch.device | None = None
    ) -> PreTrainedModel:
        """Load the weights in ``dtype``, no dropout, in eval mode, on the CPU unless they go straight to ``device``.

        quantization: what to pack them with on the way, the output head left as it is; for reading the model alone.
        Raises UserError unless there is a weight for every parameter: transformers would draw the others at random.
        """
        options: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
        path = self.path
        if quantization is not None:
            if self.gguf:
                raise UserError(
                    f"{self.flag} {self.path}: a GGUF file cannot be quantised while it is loaded; give a transformers "
                    "model folder, or leave --teacher_quantization out"
                )
            options["quantization_config"] = quantization
        if self.gguf:
            path, name = gguf_files.where_to_read(self.gguf)
            options |= name | gguf_files.dense_weights()
        with in_one_line(self.flag, self.path, "its weights"):
            model, found = _reader_of(self.config).from_pretrained(
                path,
                config=self.config,
                generation_config=self.generation,
                dtype=dtype,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which then are in the loading info, as the missing ones are
                **options,
            )
        if not self.gguf:
            folder = local_folder(self.flag, path) or Path(cached_file(path, "config.json")).parent
            tie_as_loaded(model, found["missing_keys"], _weight_files(self.flag, folder))
        self._check_complete(found)
        return model.eval()

    def _check_complete(self, found: dict[str, Any]) -> None:
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


def open_model(flag: str, path: str, trust_remote_code: bool) -> ModelFiles:
    """Read configuration, tokenizer and generation settings of a hub id, a local folder or a GGUF file.

    Raises UserError naming ``flag`` when it is not a causal language model that can be read.
    """
    path = expanded(path)
    gguf = gguf_files.find_gguf(flag, Path(path))
    folder = None if gguf else local_folder(flag, path)
    if folder:
        check_as_written(flag, folder)
    weights = _check_folder(flag, folder) if folder else []
    trust_remote_code = trust_remote_code and not gguf
    config = _read_config(flag, path, gguf, trust_remote_code)
    with in_one_line(flag, path, "its tokenizer"):
        tokenizer = (
            gguf_files.read_tokenizer(gguf)
            if gguf
            else AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        )
    with in_one_line(flag, path, "its generation_config.json"):
        generation, note = (
            (gguf_files.generation_settings(config, tokenizer), "") if gguf else read_generation(path, config)
        )
    make_savable(config)
    make_neutral(config)
    notes = tuple(filter(None, (note, untie_as_filed(config, weights))))
    return ModelFiles(flag, path, config, tokenizer, generation, trust_remote_code, gguf, notes)


def open_config(flag: str, path: str, trust_remote_code: bool) -> PretrainedConfig:
    """Read the configuration alone of a hub id, a GGUF file, or a folder that need hold nothing else; without dropout.

    Raises UserError naming ``flag`` when it is not that of a causal language model.
    """
    path = expanded(path)
    gguf = gguf_files.find_gguf(flag, Path(path))
    if gguf is None and (folder := local_folder(flag, path)) and not (folder / "config.json").is_file():
        raise UserError(f"{flag} {path}: not a model folder, it has no config.json; give a transformers model folder")
    config = _read_config(flag, path, gguf, trust_remote_code and not gguf)
    make_savable(config)
    make_neutral(config)
    return config


def _read_config(flag: str, path: str, gguf: Path | None, trust_remote_code: bool) -> PretrainedConfig:
    where, name = gguf_files.where_to_read(gguf) if gguf else (path, {})
    check_findable(flag, path)  # else the hub's client tries for half a minute
    with in_one_line(flag, path, "its configuration"):
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **name)
    if not trust_remote_code:
        _check_causal(flag, path, config)
    return config


def skeleton_of(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return a model without memory for its weights: shapes alone, on the meta device."""
    with torch.device("meta"):
        return _reader_of(config).from_config(config, trust_remote_code=trust_remote_code)


def turns_after(config: PretrainedConfig) -> int | None:
    """Return the tokens above which positions of a whole text are rotated otherwise (longrope: Phi-3 and its kin).

    None where positions do not depend on the longest text of a batch.
    """
    ropes = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [each for each in (ropes, *ropes.values()) if isinstance(each, dict)]  # one for all layers, or by kind
    lengths = [each["original_max_position_embeddings"] for each in kinds if each.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, out of its LoRA wrapper when it has one."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def body_of(network: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its output head, which makes hidden states of tokens."""
    body: Any = network.base_model
    if body is network:  # Llama 4 calls it otherwise than it says
        embedding = network.get_input_embeddings()
        body = next(child for child in network.children() if any(part is embedding for part in child.modules()))
    return body


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model itself, its weights as if it had been loaded in ``dtype``.

    ``model.to(dtype)`` rounds more: the frequencies of rotary embeddings, 0.004 to 0.018 nats off in bf16, and what
    the architecture asks to be kept, such as the biases of DeepSeek's router.
    """
    for name, tensor in saved_tensors(model):
        tensor.data = tensor.data.to(precision_of(model, name, tensor, dtype))
    return model


def saved_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Return parameters, then the buffers of a checkpoint; the others are computed from the configuration."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def precision_of(model: PreTrainedModel, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the precision that a tensor of the model has when it is loaded in ``dtype``."""
    if not tensor.is_floating_point():
        return tensor.dtype
    kept = set(model._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else set()
    kept |= set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    return torch.float32 if any(re.search(each.replace("*", ".*"), name) for each in kept) else dtype


def recompute_activations(model: nn.Module) -> None:
    """Turn gradient checkpointing on. Raises UserError for an architecture that has none."""
    network = causal_lm(model)
    if not network.supports_gradient_checkpointing:
        raise UserError(
            f"--gradient_checkpointing: {type(network).__name__} cannot compute its activations again; drop it, and "
            "lower --microbatch_tokens where memory runs out"
        )
    network.gradient_checkpointing_enable({"use_reentrant": False})


def _check_folder(flag: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a local folder.

    Raises UserError when it lacks a file that a model has, or when one of them is cut short.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{flag} {folder}: a LoRA adapter, needs a whole model; merge it into its base with peft's "
                "merge_and_unload and save_pretrained, and give that folder"
            )
        raise UserError(f"{flag} {folder}: not a model folder, it has no config.json; give a transformers model folder")
    files = _weight_files(flag, folder)
    for file in files:
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
    return files


def _weight_files(flag: str, folder: Path) -> list[Path]:
    """Return the safetensors files that transformers will read; none where the weights are in another format."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if index.is_file():
        with in_one_line(flag, str(folder), index.name):
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
    if any(folder.glob("pytorch_model*.bin")):
        return []
    raise UserError(f"{flag} {folder}: no weights in it; needs {SAFE_WEIGHTS_NAME}, download the model again")


def _reader_of(config: PretrainedConfig) -> Any:
    """Return the class that reads such a model: of text, else of text beside images, given text alone."""
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return (
        AutoModelForImageTextToText
        if sees and type(config) not in AutoModelForCausalLM._model_mapping
        else AutoModelForCausalLM
    )


def _check_causal(flag: str, path: str, config: PretrainedConfig) -> None:
    """Raise UserError unless transformers has a decoder for the model that sees only what came before."""
    models = _reader_of(config)._model_mapping
    if type(config) in models and not config.is_encoder_decoder:
        # BERT and its kin have a language-modelling class besides, but see both ways unless they say that they do not.
        sees_both_ways = getattr(config, "is_decoder", True) is False
        if not sees_both_ways or models[type(config)].__name__ in (config.architectures or ()):
            return
    raise UserError(f"{flag} {path}: {config.model_type} is not a causal language model; choose one that is")
