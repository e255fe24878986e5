"""Whole runs in processes of their own, and what two runs that should be the same have in common."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.tiny_models import llama_config, make_tokenizer, save_model

ROOT = Path(__file__).parent.parent
ENTRY = ["-m", "local_distill.train_on_policy_local"]
SETTINGS = [
    "--batch_size", "3", "--group_size", "2", "--grad_accum", "2", "--max_new_tokens", "16", "--max_prompt_tokens",
    "100", "--learning_rate", "1e-3", "--eval_every", "2", "--eval_prompts", "5", "--save_every", "2",
    "--loss", "policy_gradient", "--temperature", "0.8", "--top_p", "0.95",
]  # fmt: skip
"""Three prompts over two processes are ragged on purpose: one process has more rollouts than the other."""
TIMING = ("seconds", "tokens_per_second", "peak_memory")


def student_and_teacher(folder: Path) -> list[str]:
    """Two tiny models, as arguments of the command."""
    student = save_model(folder / "student", llama_config(layers=1), make_tokenizer(), seed=1)
    teacher = save_model(folder / "teacher", llama_config(layers=2), make_tokenizer(), seed=2)
    return ["--student_model", str(student), "--teacher_model", str(teacher)]


def environment(**more: str) -> dict[str, str]:
    """Of a process on the CPU that reads no model hub, and leaves the other core to others."""
    own = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
    }
    return {**os.environ, **own, **more}


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Every line of a run's metrics.jsonl, without what a clock or the memory says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in lines]


def assert_same_numbers(ours, theirs, tolerance=1e-4):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), (a["step"], name)


def assert_same_weights(ours: Path, theirs: Path, tolerance):
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance, name
