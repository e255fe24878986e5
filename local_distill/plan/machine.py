"""The memory that a run has, and how much of it the libraries take."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from local_distill.errors import UserError
from local_distill.process.launch import glibc_allocates

GIB = 2**30
CUDA_CONTEXT = 0.6 * GIB
"""Bytes of a process on a GPU outside of the allocator: kernels, cuBLAS. Estimated."""
COMMUNICATION = 0.4 * GIB
"""Bytes of NCCL's buffers where there are several processes. Estimated."""
USABLE = 0.98
"""GiB that CUDA shows of a card for each GB it is sold with: 23.5 of a card of 24, 78.4 of one of 80."""


@dataclass(frozen=True)
class Machine:
    """A machine is what one process of a run has.

    device: ``cuda`` or ``cpu``. processes: of the run. memory: bytes for one process: of its GPU, or its share of the
    machine's. libraries: bytes that are taken before anything is loaded. words: for people. glibc: its malloc gives
    that memory.
    """

    device: str
    processes: int
    memory: float
    libraries: float
    words: str
    glibc: bool = False


def gpus(number: int, gigabytes: float) -> Machine:
    """Return GPUs that need not be here. gigabytes: as they are sold."""
    words = f"{number} GPU{'s' * (number > 1)} of {gigabytes:.4g} GB"
    return Machine("cuda", number, gigabytes * USABLE * GIB, cuda_libraries(number), words)


def this_machine() -> Machine:
    """Return all GPUs of this machine, or its processor."""
    if torch.cuda.is_available():
        number, (_, total) = torch.cuda.device_count(), torch.cuda.mem_get_info()
        words = f"{number} × {torch.cuda.get_device_name()}, {total / GIB:.1f} GiB each"
        return Machine("cuda", number, total, cuda_libraries(number), words)
    ram = min(psutil.virtual_memory().total, cgroup_limit())
    words = f"this machine's processor, {ram / GIB:.1f} GiB"
    return Machine("cpu", 1, ram, resident(), words, glibc_allocates())


def planned_machine(number: int | None, gigabytes: float | None) -> Machine:
    """Return what ``--gpus`` and ``--gpu_memory`` ask for, or this machine without them. Raises UserError."""
    if gigabytes is not None:
        return gpus(number or 1, gigabytes)
    here = this_machine()
    if number is None:
        return here
    if here.device != "cuda":
        raise UserError(f"--gpus: {number} given, there is none here; say how large they are with --gpu_memory")
    return replace(gpus(number, here.memory / GIB), memory=here.memory)


def cuda_libraries(processes: int) -> float:
    """Return the bytes of a GPU that are gone before a tensor is made."""
    return CUDA_CONTEXT + (COMMUNICATION if processes > 1 else 0.0)


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def free_for_a_run(device: torch.device, processes: int) -> Machine:
    """Return what a run that starts now can have: the device's free memory, or its process's share of the machine's.

    Swap counts as memory: a run that swaps is slow, but it runs.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Machine("cuda", processes, free, 0.0, f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free on {device}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    ram = min(psutil.virtual_memory().available + psutil.swap_memory().free, cgroup_limit() - cgroup_use())
    shared = f" for {here} processes" if here > 1 else ""
    return Machine("cpu", processes, ram / here, 0.0, f"{ram / GIB:.1f} GiB are free{shared}")


CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory a container may use, in the second version and in the first."""
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def cgroup_limit() -> float:
    """Return the bytes that this container may use; infinite where there is no limit."""
    for limit, _ in _LIMITS:
        found = _number(CGROUP / limit)
        if found is not None:
            return found
    return float("inf")


def cgroup_use() -> float:
    """Return the bytes that this container uses, without files that are only remembered; 0 where nobody counts."""
    for _, use in _LIMITS:
        found = _number(CGROUP / use)
        if found is not None:
            return max(0.0, found - _remembered((CGROUP / use).with_name("memory.stat")))
    return 0.0


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _remembered(file: Path) -> float:
    """Return the bytes of file contents that the kernel gives up when memory is short."""
    try:
        rows = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0.0
    return sum(float(value) for name, value in rows if name in ("file", "total_cache"))
