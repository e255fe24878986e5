"""Each way of starting, in real processes of a package that only tells how it would be gone on with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_distill.process import command_line

TELLING = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("command_line", {command_line.__file__!r})
told = sys.modules["command_line"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(told)
print(told.to_resume(Path("runs/my run/config.yaml")))
print(told.to_run("chat", "runs/my run"))
"""
LAUNCHER = """
import subprocess, sys
words = sys.argv[sys.argv.index("launch") + 1:] if "launch" in sys.argv else sys.argv[1:]
while words[0] not in ("-m", "--module"):
    words = words[2:]
sys.exit(subprocess.run([sys.executable, "-u", "-m", *words[1:]]).returncode)
"""
SETTINGS = "--config 'runs/my run/config.yaml' --resume"
STARTS = [  # what somebody typed; whether .venv/bin is on the PATH; how training goes on; how another verb starts
    ("local-distill train run.yaml --steps 3", True, "local-distill train", "local-distill"),
    ("local-distill demo", True, "local-distill train", "local-distill"),
    (".venv/bin/local-distill demo", False, ".venv/bin/local-distill train", ".venv/bin/local-distill"),
    ("./.venv/bin/local-distill train run.yaml", False, "./.venv/bin/local-distill train", "./.venv/bin/local-distill"),
    ("python -m local_distill train run.yaml", True, "python -m local_distill train", "local-distill"),
    ("python -m local_distill.train_on_policy_local --config run.yaml", True, "", "local-distill"),
    (".venv/bin/python -m local_distill.train_on_policy_local", False, "", ".venv/bin/python -m local_distill"),
    (".venv/bin/python -X dev -m local_distill demo", False, ".venv/bin/python -X dev -m local_distill train", None),
    ("accelerate launch --config_file two.yaml -m local_distill.train_on_policy_local --steps 3", True, "", None),
    ("accelerate launch --num_processes 2 -m local_distill train run.yaml", True, "", "local-distill"),
    ("torchrun --nproc_per_node 2 --module local_distill demo", True, "", "local-distill"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with an environment of its own, in which the package tells how it was started."""
    folder = tmp_path_factory.mktemp("place")
    binaries, package = folder / ".venv" / "bin", folder / "local_distill"
    binaries.mkdir(parents=True)
    package.mkdir()
    for name in ("__init__", "__main__", "train_on_policy_local"):
        (package / f"{name}.py").write_text("" if name == "__init__" else TELLING)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    for name, text in (("local-distill", TELLING), ("accelerate", LAUNCHER), ("torchrun", LAUNCHER)):
        (binaries / name).write_text(f"#!{binaries / 'python'}\n{text}")
        (binaries / name).chmod(0o755)
    return folder


def told(line, place, on_path):
    """What a shell in the place prints for a line."""
    import psutil

    path = f"{place / '.venv' / 'bin'}:/usr/bin:/bin" if on_path else "/usr/bin:/bin"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(psutil.__file__).parent.parent)}
    done = subprocess.run(["/bin/sh", "-c", line], cwd=place, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("line", "on_path", "train", "other"), STARTS)
def test_a_run_is_gone_on_with_in_the_words_that_it_was_started_with(place, line, on_path, train, other):
    if not train:  # all up to the module, whose verb is train where it has any
        head, _, module = line.partition("local_distill")
        alone = module.startswith(".train_on_policy_local")
        train = f"{head}local_distill.train_on_policy_local" if alone else f"{head}local_distill train"
    to_resume, to_chat = told(line, place, on_path)
    assert to_resume == f"{train} {SETTINGS}"
    if other:
        assert to_chat == f"{other} chat 'runs/my run'"
    assert told(to_resume, place, on_path) == [to_resume, to_chat], "what was printed can be typed"
    assert told(to_chat, place, on_path), "and so can the other"


def test_a_program_of_somebody_elses_is_told_of_the_package(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "run()"])
    assert command_line.to_resume(Path("run/config.yaml")).endswith(
        "-m local_distill train --config run/config.yaml --resume"
    )


def test_a_launcher_that_was_started_with_other_words_is_nobodys(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/local-distill", "demo"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "/x/local-distill", "demo"])
    monkeypatch.setattr(command_line, "_ancestors", lambda: [["make", "demo"], ["bash"]])
    assert command_line.to_resume(Path("c.yaml")) == "/x/local-distill train --config c.yaml --resume"
