"""A model to use, wherever it is: a hub id, a model folder, a run, one step of a run, an adapter, a GGUF file."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from local_distill.errors import UserError
from local_distill.models.adapters import SETTINGS as ADAPTER_SETTINGS
from local_distill.models.adapters import AdapterFiles, open_adapter
from local_distill.models.file_settings import read_generation
from local_distill.models.files import TOKENIZER_FILES, ModelFiles, cast, open_model
from local_distill.models.hub import check_findable
from local_distill.models.loading_errors import in_one_line
from local_distill.models.quantization import check_readable
from local_distill.runs.checkpoints import MADE_IN, step_folders
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE, read_settings
from local_distill.runs.manifest import PREFIX, STATE, another_step
from local_distill.runs.records import read_evaluations
from local_distill.runs.whole_files import expanded

LAST, BEST = "last", "best"


@dataclass(frozen=True)
class Trained:
    """A model that was trained, here or elsewhere, is opened before its weights are loaded.

    files: those of the whole model, or of the base under the adapter; with the tokenizer and the stop tokens that were
    saved with it. adapter: None for a whole model. run, step: where it was trained here; None elsewhere.
    """

    files: ModelFiles
    adapter: AdapterFiles | None = None
    run: Path | None = None
    step: int | None = None

    def load(self, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
        """Return the model in eval mode, with its adapter on it, not merged, in float32."""
        base = self.files.load(dtype)
        model: nn.Module = self.adapter.load(base).requires_grad_(False) if self.adapter else base
        return model.to(device)

    def merged(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model as one set of weights, on the CPU; merged in float32, then rounded once."""
        if self.adapter is None:
            return self.files.load(dtype)
        merged: PreTrainedModel = self.load(torch.float32).merge_and_unload()  # type: ignore[operator]
        return cast(merged, dtype)


def open_trained(flag: str, path: str, trust_remote_code: bool = False, step: str = LAST) -> Trained:
    """Open everything of a model but its weights.

    flag: what ``path`` was given as, for messages. step: of a run, "last", "best" (the lowest held-out reverse KL
    among the steps that are kept) or a number.

    Raises UserError naming ``flag`` when there is no model.
    """
    folder, run = Path(expanded(path)), None
    if folder.is_dir() and not (folder / "config.json").exists() and step_folders(folder):  # a run
        run = folder
        folder = _chosen(flag, run, step)
        _check_holds_model(flag, folder)
    elif folder.is_dir() and (folder / METRICS_FILE).is_file() and not (folder / "config.json").exists():
        raise UserError(
            f"{flag} {path}: a run without a checkpoint, there is no {PREFIX}N folder in it; train until it saves "
            "(--save_every), or give another run"
        )
    elif step not in (LAST, BEST):
        raise UserError(f"{flag} {path}: not a run, so it has no step {step}; give the folder of a run")
    state = _state_of_step(folder)
    if state is None and run is not None:
        print(f"{flag} {folder}: {STATE} is missing, so it cannot be gone on with; its model is used", file=sys.stderr)
        state = {"settings": read_settings(run)}
    settings = None if state is None else state["settings"]
    adapter = open_adapter(str(folder) if folder.exists() else path, flag) if _is_adapter(flag, folder, path) else None
    if adapter is None:
        files = open_model(flag, path if settings is None else str(folder), trust_remote_code)
    else:
        base = (settings or {}).get("student_model") or adapter.config.base_model_name_or_path
        if not base:
            raise UserError(
                f"{flag} {path}: this adapter does not say what model it was trained on; write it into its "
                f"{ADAPTER_SETTINGS} as base_model_name_or_path"
            )
        base_files = _open_base(flag, path, str(base), (state or {}).get(MADE_IN), trust_remote_code)
        files = _with_what_was_saved(base_files, adapter.folder)
    check_readable(flag, files.path, files.config)
    if settings is None:
        return Trained(files, adapter)
    return Trained(files, adapter, folder.parent, int(folder.name.removeprefix(PREFIX)))


def _check_holds_model(flag: str, step: Path) -> None:
    """Raise UserError for a step of a run that has lost its model."""
    if not any((step / name).is_file() for name in ("config.json", ADAPTER_SETTINGS)):
        raise UserError(
            f"{flag} {step}: no whole checkpoint, it has lost its model (neither config.json nor {ADAPTER_SETTINGS} is "
            f"there); {another_step(step)}"
        )


def _is_adapter(flag: str, folder: Path, path: str) -> bool:
    if folder.exists():
        return (folder / ADAPTER_SETTINGS).is_file() and not (folder / "config.json").is_file()
    check_findable(flag, path, files=(ADAPTER_SETTINGS, "config.json"))  # else the hub's client tries for a minute
    with in_one_line(flag, path, "it"):
        found = cached_file(
            path,
            ADAPTER_SETTINGS,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return found is not None


def _chosen(flag: str, run: Path, step: str) -> Path:
    kept = {int(folder.name.removeprefix(PREFIX)): folder for folder in step_folders(run)}
    if step == LAST:
        return kept[max(kept)]
    if step == BEST:
        found = read_evaluations(run / COMPLETIONS_FILE) if (run / COMPLETIONS_FILE).is_file() else []
        scores = {e.step: e.reverse_kl for e in found if e.step in kept and not math.isnan(e.reverse_kl)}
        if not scores:
            raise UserError(f"{flag} {run}: no step that is kept was evaluated, so none is best; ask for the last")
        return kept[min(scores, key=lambda each: (scores[each], each))]
    if not step.isdigit() or int(step) not in kept:
        there = ", ".join(map(str, sorted(kept)))
        raise UserError(f"{flag} {run}: step {step} is not there; choose from {there}, {LAST} and {BEST}")
    return kept[int(step)]


def _open_base(flag: str, path: str, base: str, made_in: str | None, trust_remote_code: bool) -> ModelFiles:
    """Return the model under an adapter. made_in: the working folder of its run, which a relative path goes from."""
    there = Path(made_in or ".", expanded(base))
    if there.exists():
        base = base if made_in is None else str(there)
    elif not Path(base).exists() and not Path(base).is_absolute():
        place = f" from {made_in}" if made_in else ""
        try:
            return open_model(flag, base, trust_remote_code)
        except UserError as error:
            raise UserError(
                f"{flag} {path}: the model under this adapter, {base}, is neither a hub id that can be reached nor a "
                f"folder here ({error}); a folder was given relative to where the run was made{place}: start there"
            ) from error
    return open_model(flag, base, trust_remote_code)


def _state_of_step(folder: Path) -> dict[str, Any] | None:
    """Read what a step of a run was trained with, under ``settings``; None for a folder that is none."""
    if not (folder / STATE).is_file():
        return None
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return {**state, "settings": dict(state["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / STATE}: damaged ({error}); {another_step(folder)}") from error


def _with_what_was_saved(base: ModelFiles, folder: Path) -> ModelFiles:
    """Return the base, with the tokenizer and the generation settings that lie beside its adapter where they do."""
    saved = base
    if any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        with in_one_line(base.flag, str(folder), "its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=base.trust_remote_code)
        saved = replace(saved, tokenizer=tokenizer)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        with in_one_line(base.flag, str(folder), GENERATION_CONFIG_NAME):
            saved = replace(saved, generation=read_generation(str(folder), base.config)[0])
    return saved
