"""What a run ran on: environment.json, so that its numbers can be told from those of another machine or version.

A list of records, one for each start of the run, newest last. Environment variables are not in it, and no keys.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from local_distill.passwords import command_line
from local_distill.runs.layout import ENVIRONMENT_FILE, read_starts
from local_distill.runs.whole_files import write_whole

PACKAGES = (
    "local-distill", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors",
    "deepspeed", "vllm", "bitsandbytes", "gguf",
)  # fmt: skip
"""Those that can change a number; one that is not installed is left out."""
GIB = 2**30


def write_environment(folder: Path, processes: int, resumed: bool) -> Path:
    """Add what this start of a run runs on to ``folder``/environment.json; a new run begins the file.

    processes: of the run, over all machines. The rest is of this process's machine.
    Raises UserError where a resumed run finds a file that holds no such list, or where it cannot be written.
    """
    path = folder / ENVIRONMENT_FILE
    records = [*(read_starts(folder) if resumed else []), this_start(processes)]
    write_whole(path, json.dumps(records, ensure_ascii=False, indent=2) + "\n")
    return path


def this_start(processes: int) -> dict[str, Any]:
    """Return what a program that starts now runs on, as JSON takes it. processes: see ``write_environment``."""
    import torch  # takes seconds, and whoever only reads a run has no use for it

    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(sys.orig_argv),
        "processes": processes,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": _devices(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cpu": {"model": _cpu_model(), "cores": psutil.cpu_count(logical=False), "threads": psutil.cpu_count()},
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [{"name": each.name, "memory_gib": round(each.total_memory / GIB, 1)} for each in seen]
    if torch.backends.mps.is_available():
        return [{"name": "Apple GPU", "memory_gib": round(torch.mps.recommended_max_memory() / GIB, 1)}]
    return []


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        if named := [line for line in lines if line.startswith("model name")]:
            return named[0].partition(":")[2].strip()
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()
