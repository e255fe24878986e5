"""Whole runs on a device: `make test-gpu` on a machine with a GPU; in small, in the default suite, on a pretended one.

Wants torch, transformers, accelerate, peft and pytest, and no network. What was measured on the way is printed at the
end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from local_distill.config.train_config import parse_config
from local_distill.train_on_policy_local import train
from tests.gpu.memory import Memory, memory_of
from tests.pretended_gpu.device import missing, pretended_gpu
from tests.tiny_models import llama_config, make_tokenizer, save_model

ON_GPU = os.environ.get("LOCAL_DISTILL_TEST_DEVICE") == "cuda"
"""Whether this is `make test-gpu`; the default suite hides GPUs, and runs all this on a pretended one."""
TIMING = ("seconds", "tokens_per_second", "peak_memory")
MEASURED = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Shape:
    """Of the larger of the model pairs: enough for the device's memory to tell, and no more."""

    hidden: int
    layers: int
    vocabulary: int
    rollouts: int
    prompt: int
    completion: int


SHAPE = Shape(512, 8, 32_000, 16, 64, 192) if ON_GPU else Shape(64, 2, 1000, 8, 12, 24)


@dataclass
class Ran:
    """A run that has ended. said: its lines in the terminal."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A dictionary a step, without what a clock or the memory says."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in lines]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Everything of a checkpoint: weights and the optimizer's state."""
        from safetensors.torch import load_file

        files = sorted((self.folder / f"step-{step}").rglob("*.safetensors"))
        return {f"{file.name}: {name}": value for file in files for name, value in load_file(file).items()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ON_GPU and not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = []


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.stash.get(MEASURED, []):
        terminalreporter.section("measured")
        for line in config.stash[MEASURED]:
            terminalreporter.write_line(line)


@pytest.fixture
def measured(request) -> Callable[[str], None]:
    """Notes a line that is printed when all tests have run."""
    return request.config.stash[MEASURED].append if ON_GPU else lambda _: None


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    """Where there is none, and no compiler to make a pretended one, all this is on the processor."""
    torch.set_float32_matmul_precision("highest")  # containers that ask for TF32 would be far from a processor
    with nullcontext() if ON_GPU or missing() else pretended_gpu():
        yield


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def memory(device) -> Memory:
    """What the device's memory held, and how to have less of it."""
    return memory_of(device)


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if ON_GPU:
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits each time, where torch has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> dict[str, list[str]]:
    """Models by name, as arguments: tiny and larger pairs of student and teacher, and same: a model and itself."""
    root = tmp_path_factory.mktemp("models")
    tokenizer, larger = make_tokenizer(), make_tokenizer()
    wide = {
        "hidden_size": SHAPE.hidden, "intermediate_size": 2 * SHAPE.hidden, "initializer_range": 0.02,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    folders = {
        "student": save_model(root / "student", llama_config(layers=1), tokenizer, seed=1),
        "teacher": save_model(root / "teacher", llama_config(layers=2), tokenizer, seed=2),
        "larger": save_model(root / "larger", llama_config(SHAPE.vocabulary, SHAPE.layers, **wide), larger, seed=3),
        "larger teacher": save_model(
            root / "larger-teacher", llama_config(SHAPE.vocabulary, SHAPE.layers // 2, **wide), larger, seed=4
        ),
    }

    def arguments(student: str, teacher: str) -> list[str]:
        return ["--student_model", str(folders[student]), "--teacher_model", str(folders[teacher])]

    return {
        "tiny": arguments("student", "teacher"),
        "same": arguments("teacher", "teacher"),
        "larger": arguments("larger", "larger teacher"),
    }


@pytest.fixture
def prompts(tmp_path) -> Path:
    """A file of prompts of exactly SHAPE.prompt tokens each: single letters, which the tokenizer cannot join."""
    file = tmp_path / "prompts.txt"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    lines = (
        "".join(letters[(i // 26**j + j * j) % 26] for j in range(SHAPE.prompt)) for i in range(4 * SHAPE.rollouts)
    )
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., Ran]:
    """``run("name", *arguments)`` trains in ``tmp_path/name``. on_cpu: on the processor, also where there is a GPU."""
    monkeypatch.chdir(tmp_path)

    def trained(name: str, *arguments: object, on_cpu: bool = False) -> Ran:
        folder = tmp_path / name
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true" if on_cpu or not torch.cuda.is_available() else "false")
        capsys.readouterr()
        train(parse_config([*map(str, arguments), "--output_dir", str(folder)]))
        return Ran(folder, capsys.readouterr().out.splitlines())

    return trained
