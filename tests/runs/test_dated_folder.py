"""Folders named by when they were made."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from local_distill.runs.dated_folder import make_dated_folder


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
