"""What a teacher needs of the settings and of its model's files, before any weights are loaded."""

from __future__ import annotations

from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.models.files import ModelFiles
from local_distill.models.quantization import check_readable, quantised_by


def check_named(config: TrainFields) -> None:
    """Raise UserError where no model is named."""
    if not config.teacher_model:
        raise UserError("--teacher_model: not given, needs a hub id or a local folder")


def check_own(config: TrainFields, name: str, *own: str) -> None:
    """Raise UserError for a setting of another kind of teacher than this one's ``own``. name: how it is called."""
    if config.teacher_ds_zero3 and "teacher_ds_zero3" not in own:
        raise UserError(f"--teacher_ds_zero3: contradicts a {name} teacher; drop one of them")
    if config.teacher_ds_config and "teacher_ds_config" not in own:
        raise UserError("--teacher_ds_config: only used with --teacher_ds_zero3; add it, or drop the file")
    if config.teacher_url is not None and "teacher_url" not in own:
        raise UserError(f"--teacher_url: given for a {name} teacher; drop it")
    for setting in ("teacher_offload", "teacher_quantization"):
        if getattr(config, setting) != "none" and setting not in own:
            raise UserError(
                f"--{setting}: {getattr(config, setting)} given for a {name} teacher, needs one that each process "
                "holds whole (--teacher_backend local); drop it"
            )


def check_packing(teacher: ModelFiles, *asked: tuple[str, bool, bool]) -> None:
    """Raise UserError for a model that comes quantised, where it cannot be read, or not in the way that is asked for.

    asked: (flag, whether it is given, whether it refuses a GGUF file as well) of each such way.
    """
    check_readable(teacher.flag, teacher.path, teacher.config)
    packed = quantised_by(teacher.path, teacher.config)
    for flag, given, gguf_too in asked:
        if given and (packed or (gguf_too and teacher.gguf)):
            kind = packed or "a GGUF file"
            raise UserError(f"{flag}: given with a teacher that is quantised already ({kind}); drop it")
