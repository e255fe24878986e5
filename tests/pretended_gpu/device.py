"""A GPU where there is none: the device ``cuda`` with real numbers, which a processor computes.

``device.cpp`` gives torch's dispatcher a kernel for all operators on CUDA tensors: it refuses tensors on two devices as
CUDA does, and has the processor do the rest in the same memory. Here is what surrounds that: the building, and the
functions of ``torch.cuda`` that this project and its libraries ask.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import accelerate.utils.imports
import torch
import torchgen
import transformers.utils.import_utils
from torch.utils.cpp_extension import include_paths, library_paths

from local_distill.head.logprobs import LOGITS_PER_CHUNK, LOGITS_PER_CHUNK_ELSEWHERE

SOURCE = Path(__file__).with_name("device.cpp")
MEMORY = 2**29
"""Bytes that it has, as far as it says."""


def missing() -> str:
    """Why there cannot be one here, or nothing."""
    if torch.backends.cuda.is_built():
        return "this torch has CUDA of its own"
    return "" if shutil.which("g++") else "no C++ compiler (g++)"


@functools.cache
def library() -> ctypes.CDLL:
    """The device, built when its source or torch has changed, and made known to torch."""
    name = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"local-distill-tests-{os.getuid()}" / f"{name}.so"
    built.parent.mkdir(exist_ok=True, mode=0o700)
    with built.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes begin at the same time
        if not built.exists():
            build(built)
    torch.ops.load_library(str(built))
    device = ctypes.CDLL(str(built))
    device.gpu_allocated.restype = device.gpu_peak.restype = ctypes.c_int64
    for operator in operators_that_check_for_themselves():
        device.gpu_takes_host_scalars(f"aten::{operator}".encode())
    device.gpu_limit(ctypes.c_int64(MEMORY))
    device.gpu_start()
    return device


def build(target: Path) -> None:
    """Ten seconds of compiling."""
    aside = target.with_suffix(".partial")
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = ["g++", "-O1", "-w", "-std=c++20", "-shared", "-fPIC", abi, str(SOURCE), "-o", str(aside)]
    command += [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
    subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
    aside.rename(target)


def operators_that_check_for_themselves() -> Iterator[str]:
    """Whose tensors CUDA does not compare by itself, from torch's own table: these take numbers from the host."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    for entry in table.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        if "device_check: NoCheck" in entry:
            yield entry[: entry.index("(")]


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """With one GPU, as torch, accelerate, transformers, peft and we see it."""
    device = library()
    properties = SimpleNamespace(name="pretended GPU", major=8, minor=0, total_memory=MEMORY, multi_processor_count=1)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "set_device": lambda _: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (MEMORY - device.gpu_allocated(), MEMORY),
        "memory_allocated": lambda *_: device.gpu_allocated(),
        "memory_reserved": lambda *_: device.gpu_allocated(),
        "max_memory_allocated": lambda *_: device.gpu_peak(),
        "reset_peak_memory_stats": lambda *_: device.gpu_reset_peak(),
        "set_per_process_memory_fraction": lambda share, *_: device.gpu_limit(ctypes.c_int64(int(share * MEMORY))),
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "is_bf16_supported": lambda **_: True,
        "default_generators": (torch.default_generator,),
        "Stream": torch.Stream,
        "Event": torch.Event,
        "stream": lambda _: nullcontext(),
        "current_stream": torch.accelerator.current_stream,
        "default_stream": torch.accelerator.current_stream,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
    }
    chunks = patch.dict(LOGITS_PER_CHUNK, cuda=LOGITS_PER_CHUNK_ELSEWHERE)  # those of real GPUs would leave no memory
    marks = patch.multiple(torch.cuda.nvtx, range_push=lambda _: 0, range_pop=lambda: 0)  # DeepSpeed's, for profilers
    # autograd has threads for the devices that there were at its first backward pass: all is done in this one.
    with patch.multiple(torch.cuda, **answers), marks, chunks, torch.autograd.set_multithreading_enabled(False):
        _forget_what_there_was()
        device.gpu_present(True)
        try:
            yield
        finally:
            device.gpu_present(False)
            _forget_what_there_was()


def _forget_what_there_was() -> None:
    """Libraries ask once in a process whether there is a GPU; torch does for the module of its device."""
    torch.get_device_module.cache_clear()
    for module in (transformers.utils.import_utils, accelerate.utils.imports):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
