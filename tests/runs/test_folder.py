"""The folder of a run, settled before any weights are loaded."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from local_distill.runs.claim import LOCK
from local_distill.runs.folder import make_dated_folder, open_run_folder


def test_a_run_without_a_name_is_called_by_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holding = ExitStack()
    run = open_run_folder(None, None, {}, 1, holding)
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d-\d{6}", run.path.as_posix())
    assert run.path.is_dir()
    assert (run.first_step, run.checkpoint, run.notes) == (0, None, ())
    (run.path / "config.yaml").touch()
    assert open_run_folder(None, None, {}, 1, holding).path != run.path
    holding.close()


@pytest.mark.parametrize("name", ["new", "a/b/c", "there", "~/runs/x"])
def test_a_new_run_takes_a_folder_that_is_new_or_empty(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("there").mkdir()
    with ExitStack() as holding:
        run = open_run_folder(name, None, {}, 1, holding)
        assert run.path.is_dir()
        assert [each.name for each in run.path.iterdir()] == [LOCK], "no trace of the trial whether it can be written"
    left = {each for each in (Path("new"), Path("a"), Path("there"), tmp_path / "home") if each.exists()}
    assert left == {Path("there")}, "a run that is refused leaves no folder that it made"
    assert run.path == (tmp_path / "home" / "runs" / "x" if name.startswith("~") else Path(name))


def test_it_is_called_by_the_time(tmp_path):
    folder = make_dated_folder(tmp_path / "runs" / "mine")
    assert folder.is_dir()
    assert folder.parent == tmp_path / "runs" / "mine"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}", folder.name)


def test_those_of_one_second_are_apart(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_dated_folder, [tmp_path] * 40))
    assert len({folder.name for folder in made}) == 40
    assert any(folder.name.endswith("-2") for folder in made)


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="runs"):
        make_dated_folder(tmp_path / "runs")
