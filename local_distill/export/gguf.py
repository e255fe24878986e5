"""GGUF by llama.cpp's own converter, which knows every architecture that llama.cpp runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from local_distill.errors import UserError
from local_distill.export.merging import Distance, checked, probe_logprobs
from local_distill.models import gguf_files
from local_distill.models.files import open_model
from local_distill.runs.whole_files import expanded

SCRIPT = "convert_hf_to_gguf.py"
FOLDER_VARIABLE = "LLAMA_CPP_DIR"
TOLERANCE = {"f32": 0.25, "bf16": 0.25, "f16": 0.25, "q8_0": 0.4}
"""Mean nats from the trained model; the export's own rounding is in it."""
REMEDY = (
    "git clone --depth 1 https://github.com/ggml-org/llama.cpp, pip install sentencepiece protobuf, and name the "
    f"script as --gguf_converter, or set {FOLDER_VARIABLE} to the folder"
)


def find_converter(given: str | None) -> Path:
    """Return the script that was named, else the one of $LLAMA_CPP_DIR, else the one in PATH. Raises UserError."""
    if given is not None:
        path = Path(expanded(given))
        path = path / SCRIPT if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"--gguf_converter {given}: no such file; it is llama.cpp's {SCRIPT}: {REMEDY}")
        return path
    if folder := os.environ.get(FOLDER_VARIABLE):
        path = Path(expanded(folder)) / SCRIPT
        if not path.is_file():
            raise UserError(f"{FOLDER_VARIABLE}={folder}: has no {SCRIPT}; {REMEDY}")
        return path
    found = shutil.which(SCRIPT)
    if found is None:
        raise UserError(f"--gguf: needs llama.cpp's {SCRIPT}, which is not in PATH; {REMEDY}")
    return Path(found)


def convert(converter: Path, folder: Path, kind: str) -> Path:
    """Write ``folder``/model-KIND.gguf from the model in it. Raises UserError with the converter's last words."""
    target = folder / f"model-{kind}.gguf"
    words = [sys.executable, str(converter), str(folder), "--outtype", kind, "--outfile", str(target)]
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode != 0 or not target.is_file():
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
        raise UserError(
            f"--gguf {kind}: {converter} failed with code {ended.returncode} ({last.strip()[:240]}); it needs its own "
            f"packages, and an architecture and a tokenizer that it knows; {REMEDY}"
        )
    return target


def compare_gguf(expected: Tensor, file: Path, kind: str) -> Distance | str:
    """Load the file and compare it with the trained model; or why transformers cannot read it.

    Raises UserError where it gives other log-probs.
    """
    try:
        # By itself, for a folder with a config.json is a model of another format.
        gguf_files.find_gguf("--gguf", file)
        files = open_model("--gguf", str(file), trust_remote_code=False)
        found = probe_logprobs(files, files.load(torch.float32))
    except UserError as error:
        return str(error)
    return checked(expected, found, TOLERANCE[kind], f"--gguf {file.name}")
