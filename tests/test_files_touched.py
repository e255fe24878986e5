"""A new built-in part touches the files that docs/extending.md names, and no other; each trains two steps.

The part is added to a copy of the package, as its maker would add it; a process of its own trains with the copy.
"""

import difflib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launching import ROOT, environment, metrics

PACKAGE = ROOT / "local_distill"
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))
TRAIN = """
import sys
import local_distill
from local_distill.train_on_policy_local import main
from scripts.write_flag_tables import render
assert local_distill.__file__.startswith(sys.argv[1]), local_distill.__file__
print(render())
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Copy:
    """The package in a folder where it may be changed."""

    root: Path

    def add(self, file: str, text: str) -> None:
        assert not (self.root / file).exists()
        (self.root / file).write_text(text, encoding="utf-8")

    def replace(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {old!r} is to be changed, and is there {text.count(old)} times"
        (self.root / file).write_text(text.replace(old, new), encoding="utf-8")

    def register(self, table: str, name: str, value: str) -> None:
        """Put one line into a table of built-in parts."""
        self.replace("config/builtin.py", f"\n{table} = {{\n", f'\n{table} = {{\n    "{name}": {value},\n')

    def touched(self) -> dict[str, str]:
        """Every file that is not what it was: that it is new, or the number of its lines that are."""
        files = [path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        found = {}
        for path in files:
            name = path.relative_to(self.root).as_posix()
            if not (PACKAGE / name).exists():
                found[name] = "new"
            elif (PACKAGE / name).read_bytes() != path.read_bytes():
                before, after = (each.read_text(encoding="utf-8").splitlines() for each in (PACKAGE / name, path))
                changes = [line for line in difflib.ndiff(before, after) if line[0] == "+"]
                found[name] = f"{len(changes)} line{'s' if len(changes) > 1 else ''}"
        assert {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")} <= {
            f.relative_to(self.root) for f in files
        }
        return found

    def train(self, work: Path, folders: dict[str, Path], *words: str) -> str:
        """Train two steps. Returns docs/flags.md as this package would have it."""
        argv = [
            "--student_model", folders["student"], "--teacher_model", folders["teacher"], "--batch_size", "2",
            "--group_size", "2", "--max_new_tokens", "6", "--steps", "2", "--eval_prompts", "2", "--dtype", "fp32",
            "--output_dir", work / "run", *words,
        ]  # fmt: skip
        work.mkdir()
        found = subprocess.run(
            [sys.executable, "-c", TRAIN, str(self.root), *map(str, argv)], cwd=work, capture_output=True, text=True,
            env=environment(PYTHONPATH=f"{self.root.parent}:{ROOT}"), timeout=200,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert len([step for step in metrics(work / "run") if step.get("grad_norm", 0) > 0]) == 2
        return found.stdout


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "local_distill", ignore=shutil.ignore_patterns("__pycache__"))
    return Copy(tmp_path / "local_distill")


def row(part: str) -> tuple[bool, dict[str, str]]:
    """What the page's table says that is touched: whether a file of its own, and the others with how much of them."""
    (cell,) = re.findall(rf"^\| {part} \|.*?\| ([^|]*) \|$", PAGE, re.M)
    lines = re.findall(r"(one|two)? ?(lines?)? ?(?:of )?`([\w/]+\.py)`", cell)
    return "its own file" in cell, {file: f"{1 if many == 'one' else 2} {noun}" for many, noun, file in lines if many}


def assert_as_the_page_says(copy: Copy, part: str, own: str) -> None:
    own_file, others = row(part)
    assert own_file
    assert copy.touched() == {own: "new", **others}


BACKENDS = {
    "a loss": (
        "losses/bounded.py", "my_losses", "BUILTIN_LOSSES", "bounded",
        '"local_distill.losses.bounded:BOUNDED"', ("--loss", "bounded", "--top_k", "16"),
    ),
    "a teacher": (
        "teachers/counts.py", "my_teachers", "BUILTIN_TEACHERS", "counts",
        'TeacherRow("local_distill.teachers.counts:COUNTS", TeacherView.tokens)', ("--teacher_backend", "counts"),
    ),
    "a sampler": (
        "rollouts/generated.py", "my_samplers", "BUILTIN_SAMPLERS", "generated",
        '"local_distill.rollouts.generated:GENERATED"', ("--rollouts", "generated"),
    ),
}  # fmt: skip
"""Its own file, the page's module that is in it, the table, its name there, its row, and the flags that ask for it."""


@pytest.mark.parametrize("part", BACKENDS)
def test_a_backend(copy, tmp_path, folders, part):
    own, module, table, name, line, flags = BACKENDS[part]
    copy.add(own, PARTS[module])
    copy.register(table, name, line)
    written = copy.train(tmp_path / "work", folders, *flags)
    assert_as_the_page_says(copy, part, own)
    assert re.search(rf"`{flags[0]}`.*\| {name} ", written)


def test_a_source_of_prompts(copy, tmp_path, folders):
    copy.add("prompts/sums.py", PARTS["my_prompts"])
    copy.register("BUILTIN_SOURCES", "sums", 'SourceRow("local_distill.prompts.sums:SUMS")')
    flags = copy.train(tmp_path / "work", folders, "--dataset", "sums")
    assert_as_the_page_says(copy, "a source of prompts", "prompts/sums.py")
    assert re.search(r"`--dataset` •.*\| sums, deepmath \(zwhe99/DeepMath-103K\), ", flags)
    completions = (tmp_path / "work" / "run" / "completions.jsonl").read_text(encoding="utf-8")
    assert re.search(r"What is (\d+) \+ \1\?", completions)


def test_a_flag(copy, tmp_path, folders):
    field = '    reading_temperature: float = _sampling("Temperature of the completions for people.", 0.7)\n'
    before = "    stop_tokens: str = _sampling(\n"
    copy.replace("config/train_fields.py", before, field + before)
    used = "NucleusSampling(config.reading_temperature, READABLE.top_p)"
    copy.replace("build.py", "choose=READABLE,", f"choose={used},")
    flags = copy.train(tmp_path / "work", folders, "--reading_temperature", "0.01")
    assert copy.touched() == {"config/train_fields.py": "1 line", "build.py": "1 line"}
    assert "| `--reading_temperature` | number |" in flags
    assert "reading_temperature: 0.01\n" in (tmp_path / "work" / "run" / "config.yaml").read_text()
    assert "config/train_fields.py" in re.search(r"^\| a flag \|.*$", PAGE, re.M)[0]
