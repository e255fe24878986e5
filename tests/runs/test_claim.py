"""One folder, one process: who is in it is named, and whoever has ended is not in the way, however it ended."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from local_distill.commands import main as local_distill
from local_distill.errors import UserError
from local_distill.runs import claim
from local_distill.runs.claim import LOCK, Holder, claimed
from tests.launching import environment, metrics

HOLD = """
import os, sys, time
from pathlib import Path
from local_distill.runs.claim import claimed
with claimed(Path(sys.argv[1]), "--output_dir x"):
    child = os.fork() if len(sys.argv) > 2 else None
    if not child:  # the one that goes on holding it, or the one that does not
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Starts a process that claims a lock until it is killed."""
    started = []

    def start(lock, *more):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock), *more], env=environment(), stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        process.said = process.stdout.readline().strip()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def take(lock):
    with claimed(lock, "--output_dir x"):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert not lock.exists()


def test_the_lock_of_a_run_that_took_the_place_of_the_folder_is_left_alone(tmp_path):
    lock = tmp_path / "run" / LOCK
    lock.parent.mkdir()
    with claimed(lock, "--output_dir x"):
        shutil.rmtree(lock.parent)
        lock.parent.mkdir()
        with claimed(lock, "--output_dir x"):
            pass
        lock.write_text("another run's")
    assert lock.read_text() == "another run's"


def test_another_process_is_named_and_in_nobodys_way_once_it_was_killed(tmp_path, hold):
    lock = tmp_path / LOCK
    holder = hold(lock)
    with pytest.raises(UserError, match=f"--output_dir x: in use by process {holder.pid} on {platform.node()}, "):
        take(lock)
    assert lock.exists()
    holder.kill()
    holder.wait()
    assert lock.exists()
    take(lock)


def test_a_process_that_the_holder_forked_does_not_hold_what_it_held(tmp_path, hold):
    holder = hold(tmp_path / LOCK, "fork")
    holder.kill()
    holder.wait()
    try:
        take(tmp_path / LOCK)
    finally:
        os.kill(int(holder.said), signal.SIGKILL)


def test_a_second_run_of_this_process_is_another_one(tmp_path):
    with claimed(tmp_path / LOCK, "x"), pytest.raises(UserError, match=f"x: in use by process {os.getpid()} on"):
        take(tmp_path / LOCK)
    take(tmp_path / LOCK)


HERE = Holder.here()
ELSEWHERE = Holder("gpu-7", 4242, 1.7e9)


@pytest.mark.parametrize(
    ("written", "refused"),
    [
        (HERE, f"in use by process {os.getpid()} on {platform.node()}, started .*; wait until it has ended"),
        (ELSEWHERE, "in use by process 4242 on gpu-7, started .*; if it has ended, remove .*lock, or choose"),
        (Holder(HERE.host, os.getpid(), HERE.started - 60), None),  # another had the number before
        (Holder(HERE.host, 2**22 + 1, HERE.started), None),
        (None, None),
    ],
    ids=["alive", "elsewhere", "another by that number", "gone", "nobody"],  # numbers of processes are no names
)
def test_on_a_disk_without_locks_the_word_of_a_process_that_may_run_counts(tmp_path, monkeypatch, written, refused):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claim.fcntl, "flock", unsupported)
    lock = tmp_path / LOCK
    lock.write_text(json.dumps(vars(written)) if written else "")
    if refused is None:
        take(lock)
    else:
        with pytest.raises(UserError, match=refused):
            take(lock)


def test_where_all_hosts_see_a_lock_one_that_is_free_is_nobodys(tmp_path, monkeypatch):
    lock = tmp_path / LOCK
    lock.write_text(json.dumps(vars(ELSEWHERE)))
    take(lock)
    lock.write_text(json.dumps(vars(ELSEWHERE)))
    disk = type("Disk", (), {"mountpoint": "/", "opts": "rw,vers=3,local_lock=all"})
    monkeypatch.setattr(claim.psutil, "disk_partitions", lambda **_: [disk])
    with pytest.raises(UserError, match="in use by process 4242 on gpu-7"):
        take(lock)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["new", "latest", "step", "step elsewhere"])
def test_a_run_keeps_out_of_a_folder_in_which_another_is(runs, tmp_path, run_command, how):
    run, target = tmp_path / "run", tmp_path / ("new" if how in ("new", "step elsewhere") else "run")
    shutil.copytree(runs / "full", run)
    target.mkdir(exist_ok=True)
    resume = {"latest": ["--resume"], "new": []}.get(how, ["--resume", run / "step-1"])
    folder = ["--output_dir", target] if how != "step" else []
    config = ["--config", run / "config.yaml"]
    if how == "step":
        text = (run / "config.yaml").read_text()
        config[1].write_text("\n".join(line for line in text.splitlines() if not line.startswith("output_dir")))
    with claimed(target / LOCK, "another"):
        before = everything(tmp_path)
        code, _, err = run_command([*config, *resume, *folder, "--steps", "3"])
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: --output_dir {target}: in use by process {os.getpid()} on {platform.node()}, ")
        assert everything(tmp_path) == before
    code, _, err = run_command([*config, *resume, *folder, "--steps", "3"])
    assert code == 0, err
    assert not list(tmp_path.rglob("*.lock"))
    assert [line["step"] for line in metrics(target) if "loss" in line][-1] == 3


def test_what_a_killed_run_left_before_it_wrote_anything_counts_as_empty(folders, tmp_path, run_command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text(json.dumps(vars(Holder(HERE.host, 2**22 + 1, HERE.started))))
    models = ["--student_model", folders["student"], "--teacher_model", folders["teacher"], "--steps", "1"]
    small = ["--batch_size", "1", "--group_size", "1", "--max_new_tokens", "2", "--eval_prompts", "0"]
    assert run_command([*models, *small, "--output_dir", tmp_path / "run"])[0] == 0


@pytest.mark.parametrize("command", ["eval", "export", "demo"])
def test_so_does_whatever_else_writes_a_folder(runs, folders, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("p.txt").write_text("one\ntwo\n")
    flag, lock, words = {
        "eval": ("--output", "out/.lock", [
            folders["student"], "--teacher_model", folders["teacher"], "--prompts_file", "p.txt", "--output", "out",
            "--max_new_tokens", "4",
        ]),
        "export": ("--output_dir", ".out.lock", [runs / "full", "--output_dir", "out"]),
        "demo": ("--models", "out/.lock", ["--models", "out", "--models_only"]),
    }[command]  # fmt: skip
    monkeypatch.setattr("local_distill.demo.smollm2.packaged_gguf", lambda: nullcontext(Path("model.gguf")))
    with ExitStack() as holding:
        holding.enter_context(claimed(Path(lock), "another"))
        assert local_distill([command, *map(str, words)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} out: in use by process {os.getpid()} on ")
    assert not any(Path("out").iterdir())
