"""Disks that are full or gone, files that are damaged: one line, exit code 2, and nothing lost that was saved."""

import contextlib
import errno
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from local_distill import announcements
from local_distill.commands import main
from local_distill.demo import smollm2
from local_distill.errors import RunError, UserError
from local_distill.models.files import open_model
from local_distill.models.trained import open_trained
from local_distill.monitor.log import RunLog
from local_distill.runs import whole_files
from local_distill.runs.checkpoints import find_checkpoint
from local_distill.runs.records import JsonlWriter
from local_distill.training.checkpoint import Checkpointer
from tests.launching import ENTRY, environment
from tests.tiny_models import llama_config, make_model, make_tokenizer

SMALL = "--batch_size 2 --group_size 1 --max_new_tokens 6 --max_prompt_tokens 90 --eval_prompts 2 --save_every 1"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Until nothing fits any more."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


@pytest.fixture
def train(run_command, folders):
    """Runs three steps into ``folder``. Gives the exit code, and what went to stderr."""

    def run(folder, *more):
        models = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
        code, _, err = run_command([*models, *shlex.split(SMALL), "--steps", "3", "--output_dir", str(folder), *more])
        return code, err

    return run


def before(monkeypatch, owner, name, act):
    """``act(*arguments)`` just before each call of a method or function."""
    real = getattr(owner, name)

    def wrapped(*arguments, **named):
        act(*arguments)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


FULL = {
    "before a checkpoint": (Checkpointer, "save", lambda _, step: step == 3, "step-3", 2),
    "before an evaluation": (RunLog, "evaluation", lambda _, found: found.step == 3, "completions.jsonl", 2),
    "before the summary": (announcements, "write_summary", lambda *_: True, "summary.json", 3),
}


@pytest.mark.parametrize("when", FULL)
def test_a_full_disk_ends_the_run_in_one_line_that_names_the_last_checkpoint(train, small_disk, monkeypatch, when):
    owner, name, now, file, saved = FULL[when]
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        before(patch, owner, name, lambda *given: fill(small_disk) if now(*given) else None)
        code, err = train(run)
    assert code == 2
    assert err.count("\n") == 1, err
    assert err.startswith(f"error: {run / file}: cannot be written (No space left on device); free some space")
    assert err.endswith(f"; the last good checkpoint is {run / f'step-{saved}'}\n")
    assert find_checkpoint(run)[0].step == saved
    assert not list(run.glob(".partial-*")), "what was half written takes room that is needed"
    (small_disk / "filler").unlink()
    assert train(run, "--resume") == (0, "")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]


@pytest.mark.distributed
def test_a_disk_that_refuses_a_checkpoint_ends_every_process(folders, tmp_path):
    """By the limit on the size of files, which needs no file system of its own; a hang would fail by time-out."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *ENTRY, *shlex.split(SMALL)]
    words += ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
    command = f"ulimit -f 50; exec {shlex.join([sys.executable, *words, '--steps', '2', '--output_dir', 'run'])}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: run/step-1: cannot be written (File too large); raise the limit on the size of files (ulimit -f); "
        "there is no checkpoint yet"
    ]
    assert "train_on_policy_local.py" not in done.stderr  # a traceback of ours; the launcher adds one of its own


@pytest.mark.parametrize("then", ["gone", "another run's"])
def test_a_run_whose_folder_was_removed_stops_at_the_next_write(train, tmp_path, monkeypatch, then):
    run = tmp_path / "run"

    def remove(_, step, __):
        assert step < 3, "it trains on"
        if step == 2:
            shutil.rmtree(run)
        if step == 2 and then != "gone":
            run.mkdir()
            (run / "metrics.jsonl").write_text('{"step": 1}\n')

    before(monkeypatch, RunLog, "step", remove)
    code, err = train(run)
    assert code == 2
    assert err.count("\n") == 1, err
    assert f"{run}/metrics.jsonl: " in err
    assert ("was removed meanwhile" if then == "gone" else "another file has taken its place") in err
    assert [each.name for each in run.glob("*")] == ([] if then == "gone" else ["metrics.jsonl"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("kind", ["Python", "Rust"])
def test_what_the_system_says_is_said_whoever_wrote(tmp_path, number, kind):
    words = os.strerror(number)
    error = OSError(number, words) if kind == "Python" else Exception(f"I/O error: {words} (os error {number})")
    with pytest.raises(RunError) as caught, whole_files.writing(tmp_path):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written ({words})")


def test_a_mistake_of_ours_stays_one():
    with pytest.raises(KeyError), whole_files.writing(Path("here")):
        raise KeyError("no disk is to blame")


def test_records_are_refused_by_a_full_device():
    writer = JsonlWriter(Path("/dev/full"))
    with pytest.raises(RunError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        writer.write({"step": 1})
    writer.close()  # has nothing left that it would try to write


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_weights_may_be_read_by_whom_other_files_may_be_read(tmp_path, train, umask):
    found = os.umask(umask)
    try:
        assert train(tmp_path / "run", "--steps", "1")[0] == 0
        assert main(["export", str(tmp_path / "run")]) == 0
        smollm2.save(make_model(llama_config(layers=1)), make_tokenizer(), tmp_path / "demo")
    finally:
        os.umask(found)
    weights = list(tmp_path.rglob("*.safetensors"))
    assert {file.parent.name for file in weights} == {"step-1", "trainer", "export-step-1", "demo"}
    for file in weights:
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FILES = {
    "full": ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
    "lora": ("adapter_model.safetensors", "adapter_config.json", "trainer/state.json"),
}


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
def test_a_byte_that_flipped_in_a_checkpoint_is_found_by_whoever_reads_it(runs, tmp_path, kind, file):
    step = shutil.copytree(runs / kind, tmp_path / "run") / "step-2"
    open_trained("MODEL", str(tmp_path / "run"))
    flip_a_byte(step / file)
    for path in (tmp_path / "run", step):
        with pytest.raises(UserError, match=rf"^(MODEL )?{step}.*damaged"):
            open_trained("MODEL", str(path))


@pytest.mark.parametrize("words", [
    "chat run", "export run", "export run/step-2 --output_dir out",
    "eval run --prompts_file q --teacher_model {teacher} --output out",
    "train --student_model run/step-2 --teacher_model {teacher} --output_dir out",
    "train --student_model {student} --teacher_model run/step-2 --output_dir out",
    "eval {student} --teacher_model run/step-2 --prompts_file q --output out",
])  # fmt: skip
def test_every_command_looks_at_the_manifest(runs, folders, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "full", "run")
    Path("q").write_text("why\n")
    flip_a_byte(Path("run/step-2/model.safetensors"))
    code = main(shlex.split(words.format(**folders)))
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    assert "run/step-2: damaged, model.safetensors is not what was written; " in err


def test_a_checkpoint_without_a_manifest_is_no_model_but_a_model_folder_needs_none(runs, folders, tmp_path):
    step = shutil.copytree(runs / "full" / "step-2", tmp_path / "step-2")
    (step / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"its manifest\.json cannot be read"):
        open_trained("MODEL", str(step))
    shutil.rmtree(step / "trainer")
    assert open_trained("MODEL", str(step)).step is None
    folder = shutil.copytree(folders["student"], tmp_path / "another")
    (folder / "manifest.json").write_text('{"name": "of somebody else"}')
    assert open_model("MODEL", str(folder), False).config.vocab_size == 300


def test_a_checkpoint_may_do_without_its_optimizer_and_with_other_sampling(runs, tmp_path, capsys):
    step = shutil.copytree(runs / "full", tmp_path / "run") / "step-2"
    shutil.rmtree(step / "trainer")
    settings = json.loads((step / "generation_config.json").read_text())
    (step / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.5, "do_sample": True}))
    assert open_trained("MODEL", str(step)).files.generation.temperature == 0.5
    assert capsys.readouterr().err == f"MODEL {step}: generation_config.json was changed since it was written\n"


def test_hashing_for_long_is_announced(runs, capsys, monkeypatch):
    monkeypatch.setattr("local_distill.runs.manifest.LONG", 1)
    open_trained("MODEL", str(runs / "full"))
    assert f"GB in {runs / 'full' / 'step-2'} against its manifest.json\n" in capsys.readouterr().err


def in_the_middle(text: str):
    def damage(file: Path) -> None:
        lines = file.read_text().split("\n")
        file.write_text("\n".join([*lines[:1], text, *lines[1:]]))

    return damage


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


RECORDS = {
    "a folder": a_folder,
    "empty": lambda file: file.write_text(""),
    "binary": lambda file: file.write_bytes(b"\x7fELF\0\xff" * 50),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2]),
    **{
        text[:24]: in_the_middle(text)
        for text in (
            '{"step": 1, "lo', "[1]", '{"step": "x"}', '{"step": 1e999}', '{"step": 1, "completions": 3}',
            '{"step": 1, "loss": "x", "tokens": []}', '{"step": 1, "tokens": 1e999, "seconds/step": null}',
            '{"step": 1, "completions": [{"prompt": 3}]}', "[" * 3000, '{"step": 1, "loss": ' + "9" * 400 + "}",
        )
    },
}  # fmt: skip
OF_A_RUN = ("metrics.jsonl", "completions.jsonl", "config.yaml", "environment.json")


@pytest.mark.parametrize("how", RECORDS)
@pytest.mark.parametrize("file", OF_A_RUN)
def test_whatever_is_in_a_file_of_a_run_is_read_or_refused_in_one_line(runs, tmp_path, capsys, file, how):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    RECORDS[how](run / file)
    for words in (["report", str(run)], ["export", str(run), "--step", "best", "--output_dir", str(tmp_path / "out")]):
        code = main(words)
        err = capsys.readouterr().err
        assert code in (0, 2)
        assert err.count("\n") == (1 if code else 0), err
        assert not code or str(run / file) in err or "--step" in err or "none is best" in err, err
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("file", [*OF_A_RUN, "summary.md", "summary.json"])
def test_a_folder_where_a_file_of_the_run_should_be_is_named_before_it_goes_on(runs, tmp_path, train, file):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    a_folder(run / file)
    code, err = train(run, "--max_prompt_tokens", "90", "--eval_every", "1", "--learning_rate", "1e-2", "--resume")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"error: {run / file}: ")
    assert "; move it away" in err or "; mend or remove it" in err


@pytest.mark.parametrize("file", ["metrics.jsonl", "completions.jsonl"])
def test_records_that_are_gone_are_spoken_of_and_no_later_step_is_called_before(runs, tmp_path, run_command, file):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    (run / file).write_text("")
    code, out, err = run_command(["--config", str(run / "config.yaml"), "--output_dir", str(run), "--resume",
                                  "--steps", "3"])  # fmt: skip
    assert (code, err) == (0, "")
    if file == "metrics.jsonl":
        assert f"{run / file}: holds 0 of 2 steps, the others are lost to the report" in out
        return
    assert f"{run / file}: holds no completions of the evaluations at step 0, 1, 2" in out
    assert f"{run / file}: has no evaluation before training, so there is nothing to compare with" in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"] is None
    assert summary["after"]["step"] == 3


@pytest.mark.parametrize("size", ["big", "5", "0GB", "-5GB", "5GiB", "", "nanGB"])
def test_a_size_of_shards_that_is_none(runs, capsys, size):
    assert main(["export", str(runs / "full"), f"--max_shard_size={size}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --max_shard_size: {size!r} given, needs a size such as 5GB or 500MB; give one\n"
    )


@pytest.mark.parametrize("command", ["{} > /dev/full", "{} | head -1"])
def test_a_run_is_worth_more_than_who_reads_its_output(folders, tmp_path, command):
    words = f"{ENTRY[1]} {SMALL} --steps 2 --output_dir run --save_every 0"
    models = f"--student_model {folders['student']} --teacher_model {folders['teacher']}"
    whole = "set -o pipefail; " + command.format(f"{sys.executable} -m {words} {models}")
    done = subprocess.run(
        ["bash", "-c", whole], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("standard output cannot be written (")
    assert (tmp_path / "run" / "summary.md").is_file()


def test_a_command_whose_reader_has_ended_ends_as_others_do(tmp_path):
    program = "import sys; from local_distill.commands import main; sys.exit(main(['completion', 'bash']))"
    for command, code, said in [
        ("{} | true", 128 + 13, ""),
        ("{} > /dev/full", 2, "error: standard output: cannot be written (No space left on device)\n"),
    ]:
        whole = f"set -o pipefail; {command.format(shlex.join([sys.executable, '-c', program]))}"
        done = subprocess.run(
            ["bash", "-c", whole], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (code, said)


def test_a_proxy_that_is_none_is_one_line_where_the_hub_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    assert main(["export", "nobody/nothing", "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: RUN nobody/nothing: ")
