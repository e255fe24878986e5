"""Low-rank adapters on a frozen model: new ones, those of a checkpoint, and those that were trained elsewhere."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError, first_sentence
from local_distill.models.hub import check_findable
from local_distill.models.loading_errors import in_one_line, local_folder
from local_distill.models.reach import towers
from local_distill.process.seeding import seed_adapter
from local_distill.runs.manifest import check_as_written
from local_distill.runs.whole_files import expanded

FLAG = "--init_adapter"
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEADS = ("lm_head", "embed_out")
"""What models call their output head, or the last part of it; any other name is found when the adapter is put on."""
MORE_THAN_PRODUCTS = (
    "modules_to_save", "layer_replication", "trainable_token_indices", "megatron_config",
)  # fmt: skip
"""Settings of peft's with which an adapter is more than low-rank products beside linear layers."""
STARTS_FROM_THE_BASE = (True, False, "gaussian", "orthogonal", None)
"""Ways of drawing an adapter that leave the model under it as it was."""


READS_PAST_OUT_PROJ = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Kinds of models whose kernels take the weight of ``out_proj`` and not the layer: peft refuses an adapter on it."""


class Adapter(Protocol):
    """The student's adapter begins as one of the two below."""

    @property
    def dropout(self) -> float:
        """Return the share of its inputs that the adapter loses while it trains."""
        ...

    def number_of_parameters(self, student: PreTrainedModel) -> int:
        """Count the numbers that it trains; a student without memory for its weights will do."""
        ...

    def put_on(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Return the model, frozen, with the adapter in float32, the same on every process, in eval mode."""
        ...

    def put_shapes_on(self, skeleton: PreTrainedModel) -> nn.Module:
        """Do the same to a student without memory for its weights: no weights of the adapter are read."""
        ...


@dataclass(frozen=True)
class LoraSettings:
    """A new adapter is drawn by these settings; see ``--lora_*``."""

    rank: int
    alpha: float
    dropout: float
    target_modules: str

    def number_of_parameters(self, student: PreTrainedModel) -> int:
        """See Adapter."""
        adapted = add_lora(student, self, seed=0)
        return sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    def put_on(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """See Adapter."""
        return add_lora(model, self, seed)

    def put_shapes_on(self, skeleton: PreTrainedModel) -> nn.Module:
        """See Adapter."""
        return add_lora(skeleton, self, seed=0)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that was trained before is opened: its settings are read and its weights not yet.

    path: as given. folder: where its files are. config: peft's. flag: what it was given as, for messages.
    """

    path: str
    folder: Path
    config: Any
    flag: str = FLAG

    @property
    def rank(self) -> int:
        """Return the rank of the products; single modules may have their own."""
        return int(self.config.r)

    @property
    def dropout(self) -> float:
        """See Adapter."""
        return float(self.config.lora_dropout)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shapes of all weights by name from the header of their file."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118

    def number_of_parameters(self, student: PreTrainedModel | None = None) -> int:
        """See Adapter; they are counted in the file."""
        del student
        return sum(math.prod(shape) for shape in self.shapes.values())

    def put_on(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """See Adapter; nothing is drawn."""
        del seed
        return self.load(model)

    def put_shapes_on(self, skeleton: PreTrainedModel) -> nn.Module:
        """See Adapter."""
        from peft import get_peft_model

        config = copy.deepcopy(self.config)
        config.inference_mode = False
        config.init_lora_weights = True  # zeros, until its own weights are loaded
        config.base_model_name_or_path = None  # peft puts in what it is put on
        with in_one_line(self.flag, self.path, "it", "adapter"), _peft_without_warnings(), skeleton.device:
            try:
                return get_peft_model(skeleton, config)
            except ValueError as error:  # no module of these names
                raise self._does_not_fit(first_sentence(error)) from error

    def load(self, model: PreTrainedModel) -> nn.Module:
        """Return the model, frozen, with this adapter trainable in float32, in eval mode.

        Raises UserError unless every weight of the adapter has its place in the model, and every place its weight.
        """
        adapted: Any = self.put_shapes_on(model)
        if not isinstance(model.get_output_embeddings(), nn.Linear):
            raise self._on_the_head()
        try:
            found = adapted.load_adapter(str(self.folder), "default", is_trainable=True, torch_device="cpu")
        except RuntimeError as error:  # torch's own list of shapes that differ
            places = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            raise self._does_not_fit(places[0] if places else str(error)) from error
        for names, problem in ((found.unexpected_keys, "have no place in it"), (found.missing_keys, "are missing")):
            if names:
                raise self._does_not_fit(f"{len(names)} weights {problem}, such as {sorted(names)[0]}")
        return adapted.eval()

    def _does_not_fit(self, what: str) -> UserError:
        made_for = self.config.base_model_name_or_path
        made_for = f", made for {made_for}," if made_for else ""
        what = what if len(what) <= 240 else what[:239] + "…"
        return UserError(
            f"{self.flag} {self.path}: this adapter{made_for} does not fit --student_model ({what}); give the model "
            "that it was trained on"
        )

    def _on_the_head(self) -> UserError:
        return UserError(
            f"{self.flag} {self.path}: changes the output head, which must stay as it is; merge the adapter into its "
            "base with peft's merge_and_unload and save_pretrained, and give that folder as --student_model"
        )


def open_adapter(path: str, flag: str = FLAG) -> AdapterFiles:
    """Open the adapter in a local folder or under a hub id; its settings and weights alone are downloaded.

    Raises UserError when it is not one of low-rank products beside linear layers other than the head, in safetensors.
    """
    path = expanded(path)
    folder = local_folder(flag, path, "adapter")
    if folder is None:
        from huggingface_hub import snapshot_download

        check_findable(flag, path, "adapter", (SETTINGS,))
        with in_one_line(flag, path, "it", "adapter"):
            folder = Path(snapshot_download(path, allow_patterns=[SETTINGS, WEIGHTS]))
    if not (folder / SETTINGS).is_file():
        found = "a whole model, needs an adapter on one" if (folder / "config.json").is_file() else "not an adapter"
        raise UserError(f"{flag} {path}: {found}, it has no {SETTINGS}; give the folder of a LoRA adapter")
    check_as_written(flag, folder)
    with in_one_line(flag, path, SETTINGS, "adapter"):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = settings["peft_type"]
    if kind != "LORA":
        raise UserError(f"{flag} {path}: an adapter of the kind {kind}, needs LORA; give another")
    _check_weights(flag, path, folder)
    with in_one_line(flag, path, SETTINGS, "adapter"), _peft_without_warnings():
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(str(folder))
    adapter = AdapterFiles(path, folder, config, flag)
    _check_settings(adapter)
    return adapter


def _check_weights(flag: str, path: str, folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{flag} {path}: no {WEIGHTS} in it; weights in another format, such as adapter_model.bin, are pickles, "
            "which can run code, and are not read; convert them where you trust them: load the adapter with peft and "
            "save_pretrained it"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):  # compares the header with the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{flag} {path}: {WEIGHTS} is damaged or cut short; get the adapter again") from error


def _check_settings(adapter: AdapterFiles) -> None:
    config = adapter.config
    targets = config.target_modules or ()
    named = [targets] if isinstance(targets, str) else list(targets)
    named += list(config.modules_to_save or ())
    if any(name.rsplit(".", 1)[-1] in HEADS for name in named):
        raise adapter._on_the_head()
    more = [name for name in MORE_THAN_PRODUCTS if getattr(config, name, None)]
    more += ["bias"] if config.bias != "none" else []
    more += ["init_lora_weights"] if config.init_lora_weights not in STARTS_FROM_THE_BASE else []
    if more:
        raise UserError(
            f"{adapter.flag} {adapter.path}: its {SETTINGS} sets {more[0]} to {getattr(config, more[0])!r}, needs an "
            "adapter that leaves the model under it as it is; merge it into its base with peft's merge_and_unload and "
            "save_pretrained, and give that folder as --student_model"
        )


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze the model and give it a trainable low-rank adapter in float32, the same on every process, in eval mode.

    What text does not reach gets none.

    Raises UserError when the model lacks one of the modules, or when one is not a linear layer inside of it.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_target_modules(model, settings.target_modules),
        exclude_modules=_excluded(model),
    )
    seed_adapter(seed)
    with _peft_without_warnings(), model.device:  # a skeleton's adapter takes no memory either
        try:
            return get_peft_model(model, config).eval()
        except ValueError as error:
            raise UserError(
                f"--use_lora: peft has no such adapter for this model ({first_sentence(error)}); where that is about "
                "dropout, set --lora_dropout 0, else choose other --lora_target_modules"
            ) from error


def adapts_packed_weights(adapted: nn.Module) -> bool:
    """Say whether weights of several experts in one tensor are adapted, as peft does where it knows the model."""
    return bool(adapted.peft_config["default"].target_parameters)  # type: ignore[index, union-attr]


def frozen_experts_note(adapted: nn.Module) -> str:
    """Return a word on experts that are packed into tensors which the adapter leaves as they are, or nothing."""
    if adapts_packed_weights(adapted):
        return ""
    packed = [(name, p.numel()) for name, p in adapted.named_parameters() if p.ndim == 3 and "expert" in name]
    if not packed:
        return ""
    share = sum(numbers for _, numbers in packed) / sum(p.numel() for p in adapted.parameters())
    return f"the experts have no adapter: {share:.0%} of the weights are packed ({packed[0][0].rsplit('.', 1)[-1]}, …)"


def load_lora(model: PreTrainedModel, folder: Path) -> nn.Module:
    """Return the model with the trainable adapter of a checkpoint, in eval mode."""
    from peft import PeftModel

    with _peft_without_warnings():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()


def _target_modules(model: PreTrainedModel, names: str) -> str | list[str]:
    """Return the target modules as peft takes them, each name found to be a linear layer other than the head."""
    if names == "all-linear":
        return names
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if _is_linear(module) and module is not head]
    wanted = comma_separated(names)
    unknown = [name for name in wanted if not any(f".{each}".endswith(f".{name}") for each in linear)]
    if unknown or not wanted:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"--lora_target_modules {names}: {', '.join(unknown) or 'an empty name'} is no linear layer inside this "
            f"model, which has {', '.join(known)}; choose from these, or all-linear"
        )
    return wanted


def _excluded(model: PreTrainedModel) -> str | None:
    """Write a pattern of what gets no adapter: towers for other inputs; routers that return more than products."""
    routers = [name for name, module in model.named_modules() if _gives_more_than_products(module)]
    patterns = [rf"{re.escape(name)}(\..*)?" for name in (*towers(model), *routers)]
    if model.config.get_text_config().model_type in READS_PAST_OUT_PROJ:
        patterns.append(r".*\.out_proj")
    return "|".join(patterns) or None


@contextmanager
def _peft_without_warnings() -> Iterator[None]:
    """Hold back what peft and transformers tell each other's authors, about every model alike."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # It writes these for packed experts itself, and does not count parameters among the modules that they match.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match any")
        yield


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and not _gives_more_than_products(module)


def _gives_more_than_products(module: nn.Module) -> bool:
    """Tell PhiMoE's router, which chooses experts, from what is linear; Falcon's own layers are linear."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    with torch.no_grad():
        return not isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)
