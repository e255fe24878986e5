"""The wheel, built, installed and used far from the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from local_distill import __version__

ROOT = Path(__file__).parent.parent


def run(*command, cwd, env=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """By way of the sdist, as ``python -m build`` does; with the folders beside the package that must not get in."""
    root = tmp_path_factory.mktemp("wheel")
    source, built = root / "source", root / "built"
    for folder in ("local_distill", "tests", "benchmarks", "scripts"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source, cwd=root)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as held:
        assert not [name for name in held.getnames() if "/tests/" in name], "half of the tests is no use"
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The ``bin`` of an environment that has the wheel, and sees the packages of this one but not the checkout."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    packages = next((home / "lib").glob("python*")) / "site-packages"
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    # Behind its own packages; a .pth inside that folder, as an editable install has, is not followed from here.
    (packages / "test_environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin"


@pytest.fixture
def empty(tmp_path, installed):
    """``empty(*command)`` runs one in an empty folder, where nothing of the checkout can be imported by chance."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return lambda program, *words: run(installed / program, *words, cwd=tmp_path, env={**env, "HF_HUB_OFFLINE": "1"})


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "local_distill").rglob("*") if path.is_file()}
    assert held == {name for name in package if "__pycache__" not in name}
    assert wheel.name == f"local_distill-{__version__}-py3-none-any.whl"
    named = (
        "py.typed",
        "prompts/builtin.txt",
        "ds_zero2_bf16.json",
        "accelerate_config_zero2.yaml",
        "report/page.html",
    )
    demo = ("demo/demo.yaml", "demo/demo_lora.yaml", "demo/prompts.txt", "demo/questions.jsonl")
    assert {f"local_distill/{name}" for name in (*named, *demo)} <= held


def test_the_command_works_from_an_empty_folder(empty):
    assert "usage: local-distill" in empty("local-distill", "--help")
    for command in ("plan", "report"):
        assert "examples:" in empty("local-distill", command, "--help")
    where = empty("python", "-c", "import local_distill; print(local_distill.__file__)")
    assert ROOT not in Path(where.strip()).parents


def test_a_run_and_its_report_work_from_an_empty_folder(empty, folders, tmp_path):
    models = ["--student_model", folders["student"], "--teacher_model", folders["teacher"]]
    small = ["--steps", "1", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "6", "--eval_prompts", "2"]
    printed = empty("python", "-m", "local_distill.train_on_policy_local", *models, *small, "--output_dir", "run")
    assert "step 1/1" in printed
    assert (tmp_path / "run" / "step-1" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
