"""A folder is there as a whole, or not at all."""

import pytest

from local_distill.errors import RunError
from local_distill.runs.whole_files import whole_folder


def test_a_folder_has_its_name_when_all_is_in_it(tmp_path):
    target = tmp_path / "model"
    target.mkdir()  # an empty one is taken
    (tmp_path / ".partial-model").mkdir()
    (tmp_path / ".partial-model" / "half").touch()  # of one that was killed
    with whole_folder(target) as folder:
        (folder / "weights").touch()
        assert not any(target.iterdir())
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/weights"]


def test_after_an_error_nothing_is_left(tmp_path):
    def stopped():
        with whole_folder(tmp_path / "model") as folder:
            (folder / "weights").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not any(tmp_path.iterdir())


def test_what_has_come_into_its_place_meanwhile_is_kept(tmp_path):
    target = tmp_path / "model"

    def overtaken():
        with whole_folder(target):
            target.mkdir()
            (target / "mine").touch()

    with pytest.raises(RunError, match=r"model: cannot be written \(Directory not empty\)"):
        overtaken()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine"]
