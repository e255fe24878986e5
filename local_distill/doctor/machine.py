"""This machine: versions, GPUs, memory, disks, allocator, threads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from local_distill.doctor.findings import BAD, OK, WARN, Finding
from local_distill.errors import UserError
from local_distill.plan.machine import GIB, cgroup_limit, cgroup_use
from local_distill.process.launch import check_deepspeed, glibc_allocates
from local_distill.runs.folder import RUNS

LITTLE_DISK = 10 * GIB
"""A checkpoint of a small model, or its weights in the hub's cache, take a few GiB."""
LITTLE_MEMORY = 4 * GIB


def versions(environment: Mapping[str, Any]) -> Iterator[Finding]:
    """Say what is installed, and what of it is missing or too old. environment: as environment.json records it."""
    yield Finding("python", OK, f"{environment['python']} on {environment['platform']}")
    found = " ".join(f"{name} {number}" for name, number in environment["packages"].items())
    wrong = []
    for requirement in _requirements():
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            wrong.append(f"{requirement.name} {there} is not {requirement.specifier}")
    if wrong:
        yield Finding("packages", BAD, f"{found}; {', '.join(wrong)}", "pip install --upgrade local-distill")
    else:
        yield Finding("packages", OK, found)
    if "deepspeed" in environment["packages"]:
        try:
            check_deepspeed("deepspeed")
        except UserError as error:
            yield Finding("deepspeed", WARN, str(error).partition(": ")[2])


def _requirements() -> list[Requirement]:
    try:
        lines = requires("local-distill") or []
    except PackageNotFoundError:  # run from a checkout that was never installed
        return []
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def gpus(environment: Mapping[str, Any]) -> Iterator[Finding]:
    """Say of each GPU what it is and what is free of it, and how several of them talk to each other."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            yield Finding("gpu", WARN, f"there is NVIDIA's driver, but torch, built {built}, sees no GPU",
                          "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or install torch for your driver "
                          "(pytorch.org/get-started)")  # fmt: skip
        else:
            others = ", ".join(device["name"] for device in environment["devices"])
            yield Finding("gpu", OK, others or "none; runs use the processor")
        return
    driver = _driver()
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        words = f"{number}: {torch.cuda.get_device_name(number)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        taken = free < total / 2
        bf16 = torch.cuda.get_device_capability(number) >= (8, 0) or bool(torch.version.hip)
        words += f"{driver}, {'bf16' if bf16 else 'no bf16: --dtype auto takes fp32'}"
        yield Finding("gpu", WARN if taken else OK, words, "another program holds its memory: nvidia-smi shows which"
                      if taken else "")  # fmt: skip
    if torch.cuda.device_count() > 1:
        there = torch.distributed.is_available() and torch.distributed.is_nccl_available()
        yield Finding("nccl", OK if there else BAD, "is there" if there else "is missing in this torch",
                      "" if there else "install torch from pytorch.org, or train on one GPU")  # fmt: skip


def _driver() -> str:
    try:
        return f", driver {Path('/sys/module/nvidia/version').read_text(encoding='ascii').strip()}"
    except OSError:
        return ""


def memory() -> Finding:
    """Say how much of the machine's memory, or of its container's, is free."""
    there = psutil.virtual_memory()
    limit = cgroup_limit()
    total, free = min(there.total, limit), min(there.available, limit - cgroup_use())
    words = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free{' (of this container)' if limit < there.total else ''}"
    little = free < LITTLE_MEMORY
    return Finding("memory", WARN if little else OK, words, "end other programs" if little else "")


def disks(output_dir: str | None) -> Iterator[Finding]:
    """Say how much is free where runs are written and where models from the hub are kept."""
    places = {"runs": ("--output_dir", Path(output_dir).expanduser() if output_dir else RUNS),
              "hub cache": ("HF_HOME", Path(constants.HF_HUB_CACHE))}  # fmt: skip
    for about, (name, path) in places.items():
        there = path.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        words = f"{free / GIB:.0f} GiB free at {path}"
        if not os.access(there, os.W_OK):
            yield Finding(about, WARN, f"{there} cannot be written", f"set {name} to a folder that can be")
        elif free < LITTLE_DISK:
            yield Finding(about, WARN, words, f"set {name} to a larger disk, or make room")
        else:
            yield Finding(about, OK, words)


def allocator() -> Finding:
    """Say whose malloc is loaded; glibc's loses memory to fragments on a processor."""
    if not glibc_allocates():
        return Finding("allocator", OK, os.environ.get("LD_PRELOAD") or "the system's")
    remedy = "" if torch.cuda.is_available() else "tcmalloc takes less on a processor (docs/out_of_memory.md)"
    return Finding("allocator", WARN if remedy else OK, "glibc's malloc", remedy)


def threads() -> Finding:
    """Say how many threads torch computes with."""
    cores, used = psutil.cpu_count(logical=False) or os.cpu_count() or 1, torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS")
    words = f"torch computes with {used} on {cores} cores{f' (OMP_NUM_THREADS={given})' if given else ''}"
    if used < cores and not torch.cuda.is_available():
        return Finding("threads", WARN, words, "unset OMP_NUM_THREADS to use all, if one process trains" if given
                       else "this process may not use the others")  # fmt: skip
    return Finding("threads", OK, words)
