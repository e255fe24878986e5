"""Saving, tried before anything is loaded: what cannot be written would be found only when there is work to lose."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import GenerationConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel, remove_tied_weights_from_state_dict

from local_distill.errors import UserError
from local_distill.models.adapters import Adapter
from local_distill.models.files import ModelFiles
from local_distill.models.loading_errors import reason_of
from local_distill.models.older_readers import spell_for_older_readers
from local_distill.runs.checkpoints import PARTIAL, PREFIX
from local_distill.runs.whole_files import writing


def check_saving(student: ModelFiles, adapter: Adapter | None, generation: GenerationConfig, folder: Path) -> None:
    """Write a checkpoint without weights beside the real ones to come, and delete it.

    Raises UserError where the library does not save what it has read, or where the disk does not take it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{PREFIX}", dir=folder) as trial:
            skeleton = student.skeleton()
            if adapter is None:
                _check_names(skeleton)
            model = adapter.put_shapes_on(skeleton) if adapter else skeleton
            with writing(folder):
                model.save_pretrained(trial, state_dict={})  # type: ignore[operator]
                generation.save_pretrained(trial)
                student.tokenizer.save_pretrained(trial)
                spell_for_older_readers(Path(trial), skeleton.config)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"--output_dir {folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error
    except Exception as error:  # a model's settings can break their writer in any way
        raise UserError(
            f"{student.flag} {student.path}: can be read but not saved ({reason_of(error)}), so its training would be "
            "lost; mend its configuration, its tokenizer or its generation_config.json"
        ) from error


def _check_names(skeleton: PreTrainedModel) -> None:
    """Raise what the library would for weights that share memory unsaid, or that do not go back to their file names."""
    names = remove_tied_weights_from_state_dict(skeleton.state_dict(), skeleton)
    revert_weight_conversion(skeleton, names)
