"""What --resume cannot go on from: another run, a damaged checkpoint, nothing; one line each, and nothing loaded."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from local_distill.models.files import ModelFiles
from local_distill.runs.manifest import seal

SMALL = ["--batch_size", "2", "--group_size", "2", "--max_new_tokens", "8", "--save_every", "1"]


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """(arguments, folder) of a run of two steps, with a checkpoint of each."""
    from local_distill.train_on_policy_local import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"]), *SMALL]
    code = main([*arguments, "--steps", "2", "--output_dir", str(folder)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert code == 0
    return arguments, folder


@pytest.fixture
def resume(finished, run_command, tmp_path):
    """Goes on to step 3 from a copy of the run, in ``run``."""
    arguments, folder = finished
    shutil.copytree(folder, tmp_path / "run")

    def go_on(*more):
        return run_command([*arguments, "--steps", "3", *more])

    return go_on


@pytest.fixture
def refused(resume, monkeypatch):
    """The one line that it is refused with, before any weights are loaded."""

    def go_on(*more):
        with monkeypatch.context() as patch:
            patch.setattr(ModelFiles, "load", None)  # calling it would end in a traceback
            code, out, err = resume(*more)
        assert code == 2, out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip()

    return go_on


def cut_short(step):
    weights = step / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def flip_a_bit(step):
    moments = step / "trainer" / "optimizer.safetensors"
    content = bytearray(moments.read_bytes())
    content[-5] ^= 1
    moments.write_bytes(content)


DAMAGE = {
    "weights cut short": (cut_short, "model.safetensors"),
    "a bit of the optimizer": (flip_a_bit, "trainer/optimizer.safetensors"),
    "no tokenizer": (lambda step: (step / "tokenizer.json").unlink(), "tokenizer.json"),
    "garbage for a manifest": (lambda step: (step / "manifest.json").write_text("{"), "manifest.json"),
    "manifest not text": (lambda step: (step / "manifest.json").write_bytes(b"\xff\0"), "manifest.json"),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "manifest.json"),
    "garbage for a state": (lambda step: (step / "trainer" / "state.json").write_text("{"), "state.json"),
    "an empty folder": (lambda step: [shutil.rmtree(step), step.mkdir()], "manifest.json"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_that_was_named_is_refused(refused, how):
    damage, file = DAMAGE[how]
    damage(Path("run/step-2"))
    line = refused("--resume", "run/step-2")
    assert line.startswith("--resume run/step-2: ")
    assert file in line
    if how == "no tokenizer":
        assert "damaged, tokenizer.json is missing; use an older one" in line


@pytest.mark.parametrize("how", ["weights cut short", "garbage for a manifest", "an empty folder"])
def test_the_newest_whole_one_is_taken_and_the_damaged_one_is_spoken_of(resume, how):
    damage, file = DAMAGE[how]
    damage(Path("run/step-2"))
    code, out, err = resume("--output_dir", "run", "--resume")
    assert (code, err) == (0, "")
    said = out.splitlines()
    assert any("run/step-2" in line and file in line for line in said)
    assert "going on from run/step-1" in said
    assert any(line.startswith("newer checkpoint kept as run/superseded-step-2-") for line in said)
    steps = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]


@pytest.mark.parametrize("how", ["a bit of the optimizer", "garbage for a state"])
def test_all_damaged_is_an_error(refused, how):
    damage, file = DAMAGE[how]
    for step in (1, 2):
        damage(Path(f"run/step-{step}"))
    line = refused("--output_dir", "run", "--resume")
    assert line.startswith("--resume: no checkpoint in run is whole")
    assert file in line
    assert line.count(";") == 1, "one advice, not that of each checkpoint as well"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--resume"], ("--resume: which run?", "--output_dir")),
        (["--resume", "--output_dir", "empty"], ("--resume: no checkpoint in empty", "check --output_dir")),
        (["--resume", "--output_dir", "absent"], ("--resume: no checkpoint in absent", "without --resume")),
        (["--resume", "absent"], ("--resume absent: no such folder", "step-N")),
        (["--resume", "empty"], ("--resume empty: not a checkpoint", "step-N")),
        (["--resume", "run"], ("--resume run: a run's folder", "step-N", "--output_dir run --resume")),
        (["--resume", "run/step-2", "--output_dir", "other"], ("--output_dir other: is not empty", "choose another")),
        (["--resume", "run/step-2", "--output_dir", "run/metrics.jsonl"], ("--output_dir run/metrics.jsonl: a file",)),
        (["--output_dir", "run"], ("--output_dir run: is not empty", "add --resume")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_to_go_on_from(refused, argv, says):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/notes").touch()
    line = refused(*argv)
    assert line.startswith(says[0])
    assert all(words in line for words in says)
    assert sorted(file.name for file in Path("run").glob("step-*")) == ["step-1", "step-2"]


@pytest.mark.parametrize("where", [["--output_dir", "run", "--resume"], ["--resume", "run/step-2"]])
@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [("--seed", "1", "0"), ("--student_model", "{gpt2}", "student"), ("--batch_size", "3", "2")],
)
def test_another_run_is_not_gone_on_with(refused, folders, where, flag, value, before):
    value = value.format(**folders)
    line = refused(*where, flag, value)
    assert line.startswith(f"{flag}: {value} given, but run/step-2 was made with ")
    assert before in line
    assert "another --output_dir" in line


@pytest.fixture
def made_with_relative_paths(resume, tmp_path, folders):
    """The same run, as if it had been started beside its models, which are called ours and theirs there."""
    for name, folder in (("ours", "student"), ("theirs", "teacher")):
        (tmp_path / name).symlink_to(folders[folder])
    for step in Path("run").glob("step-*"):
        state = json.loads((step / "trainer" / "state.json").read_text())
        state["made_in"] = str(tmp_path)
        state["settings"] |= {"student_model": "ours", "teacher_model": "theirs"}
        (step / "trainer" / "state.json").write_text(json.dumps(state))
        seal(step)
    return resume


@pytest.mark.parametrize("more", [[], ["--student_model", "../work/../ours/"]], ids=["absolute", "from elsewhere"])
def test_a_model_is_the_same_however_its_place_is_spelled(made_with_relative_paths, tmp_path, monkeypatch, more):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    code, out, err = made_with_relative_paths("--output_dir", "../run", "--resume", *more)
    assert (code, err) == (0, "")
    assert "going on from ../run/step-2" in out


def test_the_same_words_may_not_lead_to_another_model(made_with_relative_paths, tmp_path, monkeypatch, folders):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("ours").symlink_to(folders["gpt2"])
    code, _, err = made_with_relative_paths("--output_dir", "../run", "--resume", "--student_model", "ours")
    assert code == 2
    assert err.startswith(f"error: --student_model: ours given, but ../run/step-2 was made with {tmp_path / 'ours'}; ")


def test_a_run_that_goes_on_elsewhere_leaves_the_first_as_it_was(resume):
    before = sorted(path.as_posix() for path in Path("run").rglob("*"))
    code, out, err = resume("--resume", "run/step-1", "--output_dir", "elsewhere")
    assert (code, err) == (0, "")
    assert "going on from run/step-1" in out
    assert sorted(path.name for path in Path("elsewhere").glob("step-*")) == ["step-2", "step-3"]
    assert sorted(path.as_posix() for path in Path("run").rglob("*")) == before


def test_fewer_steps_than_are_done_are_refused(refused):
    assert "--steps: 1 given, but run has already done 2" in refused("--output_dir", "run", "--resume", "--steps", "1")


def test_a_launch_that_is_refused_puts_no_newer_checkpoint_aside(refused):
    Path("run/step-3").mkdir()
    assert "has already done 2" in refused("--resume", "run/step-2", "--steps", "1")
    assert Path("run/step-3").is_dir()


@pytest.mark.parametrize("manifest", ['{"files": {}}', '{"files": []}', '{"files": 3}'])
def test_a_manifest_that_lists_nothing_vouches_for_nothing(refused, tmp_path, manifest):
    (tmp_path / "run" / "step-2" / "manifest.json").write_text(manifest)
    assert "damaged" in refused("--resume", "run/step-2", "--output_dir", "run")
