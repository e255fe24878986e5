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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from local_distill.errors import UserError
from local_distill.models.older_readers import spell_for_older_readers
from local_distill.process.distributed import on_main_process
from local_distill.runs.checkpoints import DISCARDED, MADE_IN, PARTIAL, PREFIX, Checkpoint, step_folders
from local_distill.runs.manifest import STATE, TRAINER, seal, sync
from local_distill.runs.whole_files import readable_as_others, writing
from local_distill.training.optimizer import Updates


class Checkpointer:
    """Writes ``output_dir/step-N`` and keeps the newest ``keep`` of them.

    model: the student without its training wrapper, transformers or peft. settings: see Checkpoint.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        updates: Updates,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        generation: GenerationConfig,
        settings: Mapping[str, Any],
        output_dir: Path,
        keep: int,
    ) -> None:
        self._accelerator = accelerator
        self._updates = updates
        self._model = model
        self._tokenizer = tokenizer
        self._generation = generation
        self._settings = settings
        self._output_dir = output_dir
        self._keep = keep

    def save(self, step: int) -> None:
        """Write the checkpoint under another name, then rename it; a kill at any moment leaves the last one whole.

        Collective: a sharded optimizer is gathered from all processes, the main one writes. Raises RunError on all
        of them where the disk does not take it; nothing is left of it then.
        """
        final = self._output_dir / f"{PREFIX}{step}"
        aside = self._output_dir / f"{PARTIAL}{final.name}"
        weights = self._updates.model_state()
        self._on_disk(final, aside, partial(self._write_model, aside, weights))
        del weights  # before the moments come, which are twice as much
        self._on_disk(final, aside, partial(self._write_rest, aside, final, step, self._updates.optimizer_state()))

    def _on_disk(self, final: Path, aside: Path, write: Callable[[], None]) -> None:
        """``write`` on the main process; where it fails nothing is left of ``aside``. Collective."""

        def attempt() -> None:
            with writing(final):
                try:
                    write()
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise

        on_main_process(self._accelerator, attempt)

    def _write_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        _clear_leftovers(self._output_dir)
        folder.mkdir()  # not its parents: a run's folder that was removed stays so
        self._model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        self._tokenizer.save_pretrained(folder)
        self._generation.save_pretrained(folder)
        spell_for_older_readers(folder, self._model.config)

    def _write_rest(self, folder: Path, final: Path, step: int, optimizer: dict[str, Tensor]) -> None:
        (folder / TRAINER).mkdir()
        if optimizer:
            save_torch_state_dict(
                optimizer, folder / TRAINER, filename_pattern="optimizer{suffix}.safetensors", max_shard_size="4GB"
            )
        state = {"step": step, "settings": dict(self._settings), MADE_IN: str(Path.cwd())}
        (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        readable_as_others(folder)
        seal(folder)
        if final.exists():  # saved before, and gone on from an earlier one since
            _discard(final)
        folder.rename(final)
        sync(self._output_dir)
        for old in step_folders(self._output_dir)[self._keep :]:
            _discard(old)


def moments_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """AdamW's state by parameter name, on the CPU. Raises UserError for a damaged file."""
    state: dict[str, Tensor] = {}
    for file in sorted((checkpoint.path / TRAINER).glob("optimizer*.safetensors")):
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"--resume {checkpoint.path}: {file.name} is damaged ({error})") from error
    return state


def _discard(folder: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that no half of it can be taken for a whole."""
    nameless = folder.with_name(DISCARDED + folder.name)
    folder.rename(nameless)
    _remove(nameless)


def _clear_leftovers(output_dir: Path) -> None:
    """What a run that was killed while saving or deleting left behind."""
    for pattern in (PARTIAL, DISCARDED):
        for leftover in output_dir.glob(f"{pattern}{PREFIX}*"):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
