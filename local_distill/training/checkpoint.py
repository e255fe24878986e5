"""Checkpoints that are whole or not there, and that a run goes on from exactly.

    output_dir/step-40/
        config.json, model.safetensors, tokenizer.json, …   loadable by from_pretrained (or adapter_*.safetensors)
        trainer/optimizer*.safetensors                       AdamW's moments, by parameter name
        trainer/state.json                                   the step, and the settings that must not change
        manifest.json                                        size and SHA-256 of every other file

The learning rate, the random numbers and the position in the data are functions of the step and the
settings, so the step is all that needs to be kept of them. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from local_distill.errors import UserError, first_sentence
from local_distill.models.adapters import Adapter
from local_distill.models.files import ModelFiles
from local_distill.models.older_readers import spell_for_older_readers
from local_distill.models.reach import freeze_towers
from local_distill.process.distributed import on_main_process
from local_distill.runs.checkpoints import DISCARDED, MADE_IN, PARTIAL, Checkpoint, step_folders
from local_distill.runs.folder import existing
from local_distill.runs.manifest import PREFIX, STATE, TRAINER, seal, sync
from local_distill.runs.whole_files import readable_as_others, writing
from local_distill.training.optimizer import Updates

BYTES_PER_TRAINED_PARAMETER, BYTES_PER_WEIGHT = 12, 4
"""A float32 weight and AdamW's two float32 moments; the weight alone."""


@dataclass(frozen=True)
class Checkpointer:
    """A run is kept as ``output_dir/step-N``, the newest ``keep`` of them.

    model: the student without its training wrapper, transformers or peft. settings: see Checkpoint.
    """

    accelerator: Accelerator
    updates: Updates
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    settings: Mapping[str, Any]
    output_dir: Path
    keep: int

    def save(self, step: int) -> None:
        """Write the checkpoint under another name, then rename it; a kill at any moment leaves the last one whole.

        Collective: a sharded optimizer is gathered from all processes, the main one writes. Raises RunError on all
        of them where the disk does not take it; nothing is left of it then.
        """
        final = self.output_dir / f"{PREFIX}{step}"
        aside = self.output_dir / f"{PARTIAL}{final.name}"
        weights = self.updates.model_state()
        self._on_disk(final, aside, partial(self._write_model, aside, weights))
        del weights  # before the moments come, which are twice as much
        self._on_disk(final, aside, partial(self._write_rest, aside, final, step, self.updates.optimizer_state()))

    def _on_disk(self, final: Path, aside: Path, write: Callable[[], None]) -> None:
        """Run ``write`` on the main process; where it fails nothing is left of ``aside``. Collective."""

        def attempt() -> None:
            with writing(final):
                try:
                    write()
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise

        on_main_process(self.accelerator, attempt)

    def _write_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        _clear_leftovers(self.output_dir)
        folder.mkdir()  # not its parents: a run's folder that was removed stays so
        _save_model(folder, self.model, weights, self.tokenizer, self.generation)

    def _write_rest(self, folder: Path, final: Path, step: int, optimizer: dict[str, Tensor]) -> None:
        (folder / TRAINER).mkdir()
        if optimizer:
            save_torch_state_dict(
                optimizer, folder / TRAINER, filename_pattern="optimizer{suffix}.safetensors", max_shard_size="4GB"
            )
        state = {"step": step, "settings": dict(self.settings), MADE_IN: str(Path.cwd())}
        (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        readable_as_others(folder)
        seal(folder)
        if final.exists():  # saved before, and gone on from an earlier one since
            _discard(final)
        folder.rename(final)
        sync(self.output_dir)
        for old in step_folders(self.output_dir)[self.keep :]:
            _discard(old)


def moments_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return AdamW's state by parameter name, on the CPU. Raises UserError for a damaged file."""
    state: dict[str, Tensor] = {}
    for file in sorted((checkpoint.path / TRAINER).glob("optimizer*.safetensors")):
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"--resume {checkpoint.path}: {file.name} is damaged ({error})") from error
    return state


def checkpoint_bytes(student: ModelFiles, adapter: Adapter | None) -> int:
    """Return the size of one checkpoint, from the shapes of the parameters that are trained and of the others."""
    model = student.skeleton()
    if adapter:
        return adapter.number_of_parameters(model) * BYTES_PER_TRAINED_PARAMETER
    freeze_towers(model)
    each = ((p.numel(), p.requires_grad) for p in model.parameters())
    return sum(number * (BYTES_PER_TRAINED_PARAMETER if trained else BYTES_PER_WEIGHT) for number, trained in each)


def check_disk_space(folder: Path, one_checkpoint: int, keep: int) -> None:
    """Raise UserError unless ``keep`` checkpoints, less those that are there, and the one being written fit."""
    number = 1 + max(0, keep - len(list(folder.glob(f"{PREFIX}*"))))
    needed, free = one_checkpoint * number, shutil.disk_usage(existing(folder)).free
    if needed > free:
        fewer = "lower --keep_checkpoints, " if number > 1 else ""
        raise UserError(
            f"--output_dir {folder}: {free / 1e9:.1f} GB free, needs {needed / 1e9:.1f} GB for checkpoints "
            f"({number} of {one_checkpoint / 1e9:.1f} GB); free some, {fewer}or choose another disk"
        )


def check_saving(
    student: ModelFiles, adapter: Adapter | None, generation: GenerationConfig, folder: Path, keep: int,
    beside: bool = True,
) -> None:  # fmt: skip
    """Write a checkpoint without weights beside the real ones to come, and delete it, before there is work to lose.

    beside: whether it is written there, or where temporary files are. Raises UserError where the disk has no room for
    them or does not take it, or where the library does not save what it has read.
    """
    try:
        check_disk_space(folder, checkpoint_bytes(student, adapter), keep)
        with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{PREFIX}", dir=folder if beside else None) as trial:
            skeleton = student.skeleton()
            model: nn.Module = adapter.put_shapes_on(skeleton) if adapter else skeleton
            if adapter is None:
                _check_names(skeleton)
            with writing(folder):
                _save_model(Path(trial), model, {}, student.tokenizer, generation)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"--output_dir {folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error
    except Exception as error:  # a model's settings can break their writer in any way
        raise UserError(
            f"{student.flag} {student.path}: can be read but not saved ({first_sentence(error)}), so its training "
            "would be lost; mend its configuration, its tokenizer or its generation_config.json"
        ) from error


def _check_names(skeleton: PreTrainedModel) -> None:
    """Raise what the library would for weights that share memory unsaid, or that do not go back to their file names."""
    names = remove_tied_weights_from_state_dict(skeleton.state_dict(), skeleton)
    revert_weight_conversion(skeleton, names)


def _save_model(
    folder: Path, model: nn.Module, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
) -> None:  # fmt: skip
    """Write what from_pretrained reads, of transformers or peft."""
    model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    generation.save_pretrained(folder)
    spell_for_older_readers(folder, model.config)


def _discard(folder: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that no half of it can be taken for a whole."""
    nameless = folder.with_name(DISCARDED + folder.name)
    folder.rename(nameless)
    _remove(nameless)


def _clear_leftovers(output_dir: Path) -> None:
    """Remove what a run that was killed while saving or deleting left behind."""
    for pattern in (PARTIAL, DISCARDED):
        for leftover in output_dir.glob(f"{pattern}{PREFIX}*"):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
