"""The date of a run goes with it, however its step is named."""

import pytest

from local_distill.config.resumed import as_begun
from local_distill.config.train_config import parse_config


@pytest.mark.parametrize("where", ["run/step-2", "run/step-2/", "newest", "run/step-2/../step-2"])
def test_a_step_that_is_named_has_the_date_of_its_run(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "step-2").mkdir(parents=True)
    (tmp_path / "newest").symlink_to(tmp_path / "run" / "step-2")
    (tmp_path / "run" / "config.yaml").write_text("template_date: '2020-02-29'\n")
    models = ["--student_model", "s", "--teacher_model", "t"]
    assert as_begun(parse_config([*models, "--resume", where])).template_date == "2020-02-29"
    monkeypatch.chdir(tmp_path / "run" / "step-2")
    assert as_begun(parse_config([*models, "--resume", "."])).template_date == "2020-02-29"
