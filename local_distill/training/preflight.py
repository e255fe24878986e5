"""What can be checked before any weights are loaded: hardware, launch, folders, disk."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from packaging.version import Version

from local_distill.config.parsing import LATEST
from local_distill.errors import UserError
from local_distill.models.adapters import Adapter
from local_distill.models.files import ModelFiles
from local_distill.models.reach import freeze_towers
from local_distill.packages import installed
from local_distill.process.distributed import runs_on_cuda
from local_distill.runs.checkpoints import (
    PREFIX,
    Checkpoint,
    check_same_run,
    find_checkpoint,
    open_checkpoint,
    set_aside_newer,
)
from local_distill.runs.claim import LOCK, claimed
from local_distill.runs.dated_folder import make_dated_folder
from local_distill.runs.layout import check_kinds
from local_distill.runs.manifest import MANIFEST
from local_distill.training.optimizer import precision_of_sums

BYTES_PER_TRAINED_PARAMETER, BYTES_PER_WEIGHT = 12, 4
"""A float32 weight and AdamW's two float32 moments; the weight alone."""
OLDEST_DEEPSPEED = "0.19.2"
RUNS = Path("runs")
"""Where runs are whose ``--output_dir`` is not given."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What ``--dtype`` names."""


@dataclass(frozen=True)
class Precision:
    """dtype: of frozen weights and matrix products. mixed: what accelerate calls it. note: for people, or empty."""

    dtype: torch.dtype
    mixed: str
    note: str = ""


@dataclass(frozen=True)
class RunFolder:
    """Where the run lives. checkpoint: what it goes on from, None for a new run. notes: for people."""

    path: Path
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()

    @property
    def first_step(self) -> int:
        """Steps done before."""
        return self.checkpoint.step if self.checkpoint else 0


def resolve_precision(name: str, on_cuda: bool | None = None) -> Precision:
    """``--dtype`` on this hardware. on_cuda: where the launch does not say. Raises UserError where it cannot be had."""
    on_cuda = runs_on_cuda() if on_cuda is None else on_cuda
    if name == "auto":
        name = "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if name == "fp32":
        return Precision(torch.float32, "no")
    if name == "fp16":
        if not on_cuda:
            raise UserError("--dtype fp16: needs an NVIDIA or AMD GPU, there is none here; use fp32 or bf16")
        return Precision(torch.float16, "fp16")
    if on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--dtype bf16: {torch.cuda.get_device_name()} has no bf16 arithmetic; use fp16 or fp32")
    slow = not on_cuda and not torch.backends.mps.is_available() and not _cpu_has_bf16()
    return Precision(
        torch.bfloat16, "bf16", "this processor emulates bf16: the same results, but fp32 is faster" if slow else ""
    )


def check_packages(teacher_ds_zero3: bool) -> None:
    """Raise UserError when a flag needs a package that is not installed, or an older one."""
    if teacher_ds_zero3 and not installed("deepspeed"):
        raise UserError(
            "--teacher_ds_zero3: needs DeepSpeed, which is not installed; pip install 'local-distill[deepspeed]'"
        )
    if teacher_ds_zero3:
        _check_deepspeed("--teacher_ds_zero3")


def _check_deepspeed(flag: str) -> None:
    """Older ones round a model's buffers too, and with them the frequencies of rotary embeddings."""
    found = importlib.metadata.version("deepspeed")
    if Version(found) < Version(OLDEST_DEEPSPEED):
        raise UserError(
            f"{flag}: DeepSpeed {found} is installed, needs to be at least {OLDEST_DEEPSPEED}: older ones round what "
            "must stay in float32; pip install --upgrade 'local-distill[deepspeed]'"
        )


def check_launch(accelerator: Accelerator, batch_size: int, precision: Precision) -> None:
    """Raise UserError when the settings do not fit the processes that were launched."""
    if batch_size < accelerator.num_processes:
        raise UserError(
            f"--batch_size: {batch_size} given for {accelerator.num_processes} processes, needs to be at least "
            f"{accelerator.num_processes}; raise it, or launch fewer processes"
        )
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    _check_deepspeed("--deepspeed_config_file")
    settings = plugin.deepspeed_config
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2):
        raise UserError(f"--deepspeed_config_file: ZeRO stage {stage} for the student, needs to be 1 or 2")
    enabled = {key for key in ("bf16", "fp16") if settings.get(key, {}).get("enabled") is True}
    if enabled != {precision.mixed}:
        raise UserError(
            f"--dtype: {precision.mixed.replace('no', 'fp32')} does not match the DeepSpeed configuration, which "
            f"enables {' and '.join(sorted(enabled)) or 'neither bf16 nor fp16'}; make them agree on bf16 or fp16"
        )


def launch_in_words(accelerator: Accelerator, precision: Precision) -> str:
    """What was launched: ``2 processes with DeepSpeed ZeRO-2, bf16, on cuda``."""
    plugin, number = accelerator.state.deepspeed_plugin, accelerator.num_processes
    kind = f"DeepSpeed ZeRO-{plugin.zero_stage}" if plugin else "data parallelism"
    processes = f"{number} processes" if number > 1 else "1 process"
    processes += f" with {kind}" if number > 1 or plugin else ""
    return f"{processes}, {precision.mixed.replace('no', 'fp32')}, on {accelerator.device.type}"


def sums_in_words(accelerator: Accelerator) -> str:
    """A word on the precision in which gradients are summed, where DeepSpeed's file does not ask for the exact one."""
    plugin = accelerator.state.deepspeed_plugin
    given = precision_of_sums(plugin.deepspeed_config) if plugin else "fp32"
    if given is None:
        return "gradients are summed in fp32: the DeepSpeed configuration has no data_types.grad_accum_dtype"
    if given in ("fp32", "float32", "float"):
        return ""
    return f"data_types.grad_accum_dtype {given}: the sum of 32 micro-batches is off by about 1 %; in fp32 it is exact"


def open_run_folder(
    output_dir: str | None, resume: str | None, settings: dict[str, Any], holding: ExitStack
) -> RunFolder:
    """Make the folder of a new run, or find the checkpoint to go on from. settings: those that must not change.

    holding: keeps the folder from other runs until it is closed.
    Raises UserError when another run is in the folder, or something else, when it cannot be written, or has nothing to
    resume.
    """
    if resume is None:
        folder = _path(output_dir) if output_dir is not None else _new_folder()
        _claim_new(folder, holding)
        return RunFolder(folder)
    if resume == LATEST:
        if output_dir is None:
            raise UserError("--resume: which run? give its folder as --output_dir, or a step folder after --resume")
        if _path(output_dir).is_dir():
            _claim(_path(output_dir), holding)
        checkpoint, notes = find_checkpoint(_path(output_dir))
        run = RunFolder(_path(output_dir), checkpoint, tuple(notes))
    else:
        run = _run_of_step(_path(resume), output_dir, holding)
    assert run.checkpoint is not None
    check_same_run(run.checkpoint, settings)
    check_kinds(run.path)
    renamed = [f"newer checkpoint kept as {path}" for path in set_aside_newer(run.path, run.first_step)]
    return replace(run, notes=(*run.notes, f"going on from {run.checkpoint.path}", *renamed))


def checkpoint_manifest(run: RunFolder) -> str:
    """The checksums of the checkpoint that the run goes on from, as text; empty for a new run."""
    return (run.checkpoint.path / MANIFEST).read_text(encoding="utf-8") if run.checkpoint else ""


def check_checkpoint_is_here(run: RunFolder, manifest: str) -> None:
    """Raise UserError where this machine does not see the checkpoint, with this manifest, that the first one found."""
    if run.checkpoint is None:
        return
    path = run.checkpoint.path
    try:
        same = (path / MANIFEST).read_text(encoding="utf-8") == manifest
    except OSError as error:
        raise UserError(
            f"--resume {path}: not on every machine ({error.strerror}); --output_dir must be on a disk that all "
            "machines share, or be copied to the same place on each"
        ) from error
    if not same:
        raise UserError(f"--resume {path}: another checkpoint than on the first machine; copy that one over it")


def check_steps_left(run: RunFolder, steps: int) -> None:
    """Raise UserError when a run that is gone on with has done more steps than it is asked for."""
    if run.first_step > steps:
        raise UserError(
            f"--steps: {steps} given, but {run.path} has already done {run.first_step}; give at least as many"
        )


def checkpoint_bytes(student: ModelFiles, adapter: Adapter | None) -> int:
    """Size of one checkpoint, from the shapes of the trained parameters, and of all others that it holds."""
    model = student.skeleton()
    if adapter:
        return adapter.number_of_parameters(model) * BYTES_PER_TRAINED_PARAMETER
    freeze_towers(model)
    each = ((p.numel(), p.requires_grad) for p in model.parameters())
    return sum(number * (BYTES_PER_TRAINED_PARAMETER if trained else BYTES_PER_WEIGHT) for number, trained in each)


def check_disk_space(folder: Path, one_checkpoint: int, keep: int) -> None:
    """Raise UserError unless ``keep`` checkpoints, less those that are there, and the one being written fit."""
    number = 1 + max(0, keep - len(list(folder.glob(f"{PREFIX}*"))))
    needed, free = one_checkpoint * number, shutil.disk_usage(folder).free
    if needed > free:
        fewer = "lower --keep_checkpoints, " if number > 1 else ""
        raise UserError(
            f"--output_dir {folder}: {free / 1e9:.1f} GB free, needs {needed / 1e9:.1f} GB for checkpoints "
            f"({number} of {one_checkpoint / 1e9:.1f} GB); free some, {fewer}or choose another disk"
        )


def _run_of_step(step_folder: Path, output_dir: str | None, holding: ExitStack) -> RunFolder:
    """Where a run goes on that is resumed from a folder named by the user: where it was, or in a new place."""
    if not step_folder.is_dir():
        raise UserError(f"--resume {step_folder}: no such folder; give a {PREFIX}N folder, or --resume alone")
    if any(step_folder.glob(f"{PREFIX}*")):
        raise UserError(
            f"--resume {step_folder}: a run's folder, needs one of the {PREFIX}N folders in it; "
            f"or give --output_dir {step_folder} --resume, which takes the newest"
        )
    home = step_folder.resolve().parent
    folder = _path(output_dir) if output_dir else home
    if folder.resolve() == home:
        _claim(folder, holding)
    else:
        _claim_new(folder, holding)  # another run's checkpoints and records would be taken for this one's
    return RunFolder(folder, open_checkpoint(step_folder))


def _new_folder() -> Path:
    _check_writable(RUNS)
    return make_dated_folder(RUNS)


def _claim(folder: Path, holding: ExitStack) -> None:
    """Raise UserError unless the folder can be made and written, and no other run is in it."""
    _check_writable(folder)
    try:
        holding.enter_context(claimed(folder / LOCK, f"--output_dir {folder}"))
    except OSError as error:
        raise _not_writable(folder, error) from error


def _claim_new(folder: Path, holding: ExitStack) -> None:
    """The same, and raise UserError unless the folder is empty."""
    _claim(folder, holding)
    if any(each.name != LOCK for each in folder.iterdir()):
        remedy = "add --resume to go on with it, or choose another"
        if not any(folder.glob(f"{PREFIX}*")):
            remedy = "choose another, or empty it (it holds no checkpoint to --resume from)"
        raise UserError(f"--output_dir {folder}: is not empty; {remedy}")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise UserError(f"--output_dir {folder}: a file, needs a folder; choose another") from error
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"--output_dir {folder}: cannot be written ({error.strerror}); choose another")


def _path(given: str) -> Path:
    return Path(given).expanduser() if given.startswith("~/") else Path(given)


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
