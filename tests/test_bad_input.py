"""Every mistake that a user can make on the whole command: exit code 2, one line that names it, and nothing loaded."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from local_distill.models.files import ModelFiles
from tests.mistakes import ALL, SMALL, Mistake, write

ROOT = Path(__file__).parent.parent


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test: the mistake has to be found before."""

    def load(files, dtype):
        raise AssertionError(f"weights of {files.path} were loaded as {dtype}")

    monkeypatch.setattr(ModelFiles, "load", load)


@pytest.fixture
def fails(run_command, folders, monkeypatch, tmp_path):
    """Runs the command with the mistake in it and gives the one line that it says."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(argv, *, made_nothing=True):
        words = shlex.split(f"--student_model {{student}} --teacher_model {{teacher}} {SMALL} {argv}")
        code, out, err = run_command([str(folders.get(word.strip("{}"), word)) for word in words])
        lines = [line for line in err.splitlines() if line and "Generating " not in line]  # progress, of datasets
        assert code == 2, err + out
        assert len(lines) == 1, err
        assert "Traceback" not in out + err
        assert lines[0].startswith("error: ")
        if made_nothing:  # so that the same command, mended, runs
            assert not Path("runs").exists()
            assert not Path("run").exists()
        return lines[0]

    return run


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("mistake", ALL.values(), ids=ALL)
def test_a_mistake_is_named_in_one_line_before_any_weights_are_loaded(mistake: Mistake, fails, folders, tmp_path):
    write(tmp_path, mistake.files)
    if mistake.broken:
        shutil.copytree(folders["student"], tmp_path / "broken")
        write(tmp_path / "broken", mistake.broken)
    line = fails(mistake.argv)
    assert line.removeprefix("error: ").startswith(mistake.says[0])
    for words in mistake.says:
        assert words in line


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("argv", "missing"), [([], "student"), (["--student_model", "x"], "teacher")])
def test_a_model_left_out(run_command, argv, missing):
    code, _, err = run_command(argv)
    assert code == 2
    assert err == f"error: --{missing}_model: not given, needs a hub id or a local folder\n"


@pytest.mark.usefixtures("no_weights")
def test_built_in_prompts_do_not_stand_in_for_a_data_set(run_command, folders):
    models = ["--student_model", folders["student"], "--teacher_model", folders["teacher"]]
    code, out, err = run_command([*models, "--dataset", "deepmath", "--max_new_tokens", "8"])
    assert code == 2
    assert err.startswith("error: --dataset deepmath: cannot be loaded")
    assert out == ""


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("how", ["", "--use_lora --lora_r 4096"])
def test_too_little_disk_is_found_from_the_shapes_alone(fails, folders, tmp_path, how):
    """Weights of 100 TB are declared: allocated even once, for a moment, they would end the test."""
    config = json.loads((folders["student"] / "config.json").read_text())
    config |= {"hidden_size": 65536, "intermediate_size": 2**22, "num_hidden_layers": 100, "head_dim": 16384}
    shutil.copytree(folders["student"], tmp_path / "giant")
    write(tmp_path / "giant", {"config.json": json.dumps(config)})
    line = fails(f"--student_model giant {how}")
    assert line.startswith("error: --output_dir run: ")
    assert "GB free, needs " in line
    assert line.endswith("choose another disk")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_hidden_layers": 3}, "18 are missing, such as model.layers.1.input_layernorm.weight"),
        ({"intermediate_size": 64}, "3 have another shape, such as model.layers.0.mlp.down_proj.weight"),
    ],
)
@pytest.mark.parametrize("flag", ["--student_model", "--teacher_model"])
def test_parameters_without_weights_are_not_drawn_at_random(fails, folders, tmp_path, flag, change, problem):
    config = json.loads((folders["student"] / "config.json").read_text())
    shutil.copytree(folders["student"], tmp_path / "broken")
    write(tmp_path / "broken", {"config.json": json.dumps(config | change)})
    line = fails(f"{flag} broken", made_nothing=False)
    assert line.startswith(f"error: {flag} broken: its weights do not fit its config.json: {problem}; ")
    assert line.endswith("download the model again")


@pytest.mark.usefixtures("no_weights")
def test_bf16_on_a_gpu_that_has_none(fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    line = fails("--dtype bf16")
    assert line == "error: --dtype bf16: Tesla T4 has no bf16 arithmetic; use fp16 or fp32"


UNINSTALLED = """
import json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("deepspeed", "wandb", "tensorboard", "tensorboardX")
        return None if absent else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if each is PathFinder else each for each in sys.meta_path]
from local_distill.train_on_policy_local import main

for argv in json.loads(sys.argv[1]):
    print(main(argv))
"""


def test_packages_that_are_not_installed(folders, tmp_path):
    """In an own process, from whose start on Python finds no trace of them."""
    models = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
    flags = [["--teacher_ds_zero3"], ["--wandb_project", "mine"], ["--trackers", "tensorboard"]]
    command = [sys.executable, "-c", UNINSTALLED, json.dumps([[*models, *each] for each in flags])]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    assert done.stderr.splitlines() == [
        "error: --teacher_ds_zero3: needs DeepSpeed, which is not installed; pip install 'local-distill[deepspeed]'",
        "error: --wandb_project: the package wandb is not installed; pip install wandb",
        "error: --trackers: the package tensorboard is not installed; pip install tensorboard",
    ]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("argv", ["--wandb_project mine", "--trackers wandb"])
def test_wandb_online_without_a_key(fails, monkeypatch, tmp_path, argv):
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()  # it reads the environment once
    line = fails(argv)
    wandb.teardown()
    assert line.startswith("error: --wandb_mode online: no Weights & Biases key")
    assert "`wandb login`" in line
    assert line.endswith("--wandb_mode offline")


@pytest.mark.distributed
def test_fewer_prompts_than_processes_ends_all_of_them_with_one_line(folders, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "local_distill.train_on_policy_local", *shlex.split(SMALL), "--batch_size", "1"]
    command += ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: --batch_size: 1 given for 2 processes, needs to be at least 2; raise it, or launch fewer processes"
    ]
    assert "train_on_policy_local.py" not in done.stderr  # a traceback of ours; the launcher adds one of its own
