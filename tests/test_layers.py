"""Imports run one way: no module imports from a layer above its own, and no modules import each other in a circle."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import local_distill

PACKAGE = Path(local_distill.__file__).parent
# fmt: off
LAYERS = (
    "__init__", "errors", "packages", "wording", "passwords", "process", "runs", "head", "shared_prompts", "batch",
    "config", "models", "prompts", "losses", "serving", "training", "backends", "rollouts", "teachers", "monitor",
    "loop", "eval", "inputs", "plan", "report", "announcements", "build", "dry_run", "export", "chat", "demo",
    "first_run", "doctor", "train_on_policy_local", "commands", "__main__",
)
# fmt: on
"""From the bottom to the top: each may import those before it. docs/architecture.md says what each is for."""


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module → the modules of the package that it imports anywhere in its text, those for types alone included."""
    files = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            plain = isinstance(node, ast.Import) and any(a.name.startswith("local_distill") for a in node.names)
            assert not plain, f"{path}: write from local_distill… import …, which is what is followed here"
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("local_distill"):
                continue
            where = (node.module or "").removeprefix("local_distill").strip(".")
            for alias in node.names:
                inside = f"{where}.{alias.name}".strip(".")
                home = next((each for each in (inside, where, f"{where}.__init__".strip(".")) if each in files), None)
                assert home, f"{path}: {inside} is in no module"
                found[name].add(home)
    found.pop("__init__", None)  # only for types: its names are loaded when they are asked for
    return found


def layer(module: str) -> int:
    return LAYERS.index(module.partition(".")[0])


def upwards(graph: dict[str, set[str]]) -> list[str]:
    return sorted(f"{one} imports {other}" for one in graph for other in graph[one] if layer(other) > layer(one))


def test_no_module_imports_from_a_layer_above_its_own():
    assert upwards(imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    graph = imports()
    tuple(TopologicalSorter(graph).static_order())


def test_every_folder_and_module_has_its_layer_and_no_layer_is_empty():
    assert {module.partition(".")[0] for module in imports()} | {"__init__"} == set(LAYERS)


def test_the_architecture_page_shows_the_same_order():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page[page.index("    local_distill/\n") : page.index("    tests/")].splitlines()[1:]
    names = [name for line in tree for name in re.findall(r"(?:^ {6}|(?<=\.py)  )(\w+)(?:/|\.py)(?= |$)", line)]
    assert names == [name for name in LAYERS if not name.startswith("__")]


def test_both_are_seen_to_fail(tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "loop.py").write_text("def f():\n    from local_distill.head import logprobs\n")
    (tmp_path / "head" / "logprobs.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from local_distill.loop import f\n"
    )
    graph = imports(tmp_path)
    assert upwards(graph) == ["head.logprobs imports loop"]
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(graph).static_order())


def test_what_a_run_leaves_is_read_without_torch():
    """So that a report, or another program, need not wait for it."""
    modules = [f"local_distill.{name}" for name in imports() if name.startswith("runs.")]
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]
