"""What is launched: in which precision, how many processes, with which of DeepSpeed's settings and which allocator."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from packaging.version import Version

from local_distill.errors import UserError
from local_distill.packages import installed
from local_distill.process.distributed import runs_on_cuda
from local_distill.wording import counted

OLDEST_DEEPSPEED = "0.19.2"
"""Older ones round a model's buffers too, and with them the frequencies of rotary embeddings."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What ``--dtype`` names."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_KEPT, _MOST_KEPT = 2**30, 2**31 - 1  # bytes, as large as the int that glibc takes


@dataclass(frozen=True)
class Precision:
    """A precision is what a run computes in.

    dtype: of frozen weights and matrix products. mixed: what accelerate calls it. note: for people, or empty.
    """

    dtype: torch.dtype
    mixed: str
    note: str = ""

    @property
    def name(self) -> str:
        """Return what ``--dtype`` calls it."""
        return self.mixed.replace("no", "fp32")


def resolve_precision(name: str, on_cuda: bool | None = None) -> Precision:
    """Return what ``--dtype`` means on this hardware. on_cuda: where the launch does not say.

    Raises UserError where it cannot be had.
    """
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


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_deepspeed(flag: str) -> None:
    """Raise UserError unless the DeepSpeed that ``flag`` needs is installed, and not an older one."""
    if not installed("deepspeed"):
        raise UserError(f"{flag}: needs DeepSpeed, which is not installed; pip install 'local-distill[deepspeed]'")
    found = importlib.metadata.version("deepspeed")
    if Version(found) < Version(OLDEST_DEEPSPEED):
        raise UserError(
            f"{flag}: DeepSpeed {found} is installed, needs to be at least {OLDEST_DEEPSPEED}: older ones round what "
            "must stay in float32; pip install --upgrade 'local-distill[deepspeed]'"
        )


def open_accelerator(precision: Precision, trackers: Sequence[str], batch_size: int) -> Accelerator:
    """Return what was launched, ready to train. Raises UserError when the settings do not fit it."""
    accelerator = Accelerator(
        mixed_precision=precision.mixed,
        log_with=list(trackers) or None,
        project_dir=".",  # accelerate insists on one; the log puts every tracker's files into the run's folder
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_launch(accelerator, batch_size, precision)
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep what tensors leave behind, for the next ones.

    By default it hands every large block back, and the kernel clears each page anew when the next micro-batch
    asks for it: a third of a step on two cores (docs/benchmarks.md). Other allocators are left as they are.
    """
    if glibc_allocates():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


def glibc_allocates() -> bool:
    """Return whether memory comes from glibc's own malloc, and not from one loaded before it, like tcmalloc's."""
    return platform.libc_ver()[0] == "glibc" and "malloc" not in os.environ.get("LD_PRELOAD", "")


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
    check_deepspeed("--deepspeed_config_file")
    settings = plugin.deepspeed_config
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2):
        raise UserError(f"--deepspeed_config_file: ZeRO stage {stage} for the student, needs to be 1 or 2")
    enabled = {key for key in ("bf16", "fp16") if settings.get(key, {}).get("enabled") is True}
    if enabled != {precision.mixed}:
        raise UserError(
            f"--dtype: {precision.name} does not match the DeepSpeed configuration, which "
            f"enables {' and '.join(sorted(enabled)) or 'neither bf16 nor fp16'}; make them agree on bf16 or fp16"
        )


def launch_in_words(accelerator: Accelerator, precision: Precision) -> str:
    """Return what was launched in words: ``2 processes with DeepSpeed ZeRO-2, bf16, on cuda``."""
    plugin, number = accelerator.state.deepspeed_plugin, accelerator.num_processes
    kind = f"DeepSpeed ZeRO-{plugin.zero_stage}" if plugin else "data parallelism"
    processes = counted(number, "process", "processes")
    processes += f" with {kind}" if number > 1 or plugin else ""
    return f"{processes}, {precision.name}, on {accelerator.device.type}"


def precision_of_sums(settings: Mapping[str, Any]) -> str | None:
    """Return in which precision DeepSpeed's file adds up micro-batches' gradients; None where it leaves that open.

    DeepSpeed's own choice would be the student's precision: in bf16 the sum of 32 micro-batches is off by 0.7 %.
    """
    given = settings.get("data_types", {}).get("grad_accum_dtype")
    return None if given in (None, "auto") else str(given).removeprefix("torch.")


def sums_in_words(accelerator: Accelerator) -> str:
    """Return a word on the precision of sums of gradients, where DeepSpeed's file does not ask for the exact one."""
    plugin = accelerator.state.deepspeed_plugin
    given = precision_of_sums(plugin.deepspeed_config) if plugin else "fp32"
    if given is None:
        return "gradients are summed in fp32: the DeepSpeed configuration has no data_types.grad_accum_dtype"
    if given in ("fp32", "float32", "float"):
        return ""
    return f"data_types.grad_accum_dtype {given}: the sum of 32 micro-batches is off by about 1 %; in fp32 it is exact"
