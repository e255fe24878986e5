"""The words of the page."""

from __future__ import annotations

from pathlib import Path

from local_distill.report.following import FollowedRun
from local_distill.report.reading import read_run, read_runs
from local_distill.report.tables import completions_by_prompt, environment_rows, outcome_of, settings_rows
from tests.report.runs import write_run


def test_how_a_run_ended(tmp_path: Path) -> None:
    outcome = outcome_of(read_run(write_run(tmp_path / "run")))
    assert (outcome.before, outcome.after, outcome.change) == ("3.00 ± 0.3", "0.600 ± 0.06", "−80 %")
    assert (outcome.steps, outcome.tokens, outcome.seconds, outcome.rate) == ("4", "400", "8 s", "50.0")
    assert outcome.progress.state == "finished"


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    settings = (folder / "config.yaml").read_text().replace("steps: 2", "steps: 10")
    (folder / "config.yaml").write_text(settings)
    assert outcome_of(read_run(folder)).progress.state == "stopped after step 2 of 10"


def test_a_teacher_without_a_name_is_told_of_in_its_own_words(tmp_path: Path) -> None:
    own = write_run(tmp_path / "own", teacher_backend="self", teacher_model="", use_lora=True)
    assert outcome_of(read_run(own)).teacher == "itself without its adapter"
    served = write_run(tmp_path / "served", teacher_model="", teacher_url="http://localhost:8000")
    assert outcome_of(read_run(served)).teacher == "http://localhost:8000"


def test_before_the_second_evaluation_there_is_no_after(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3, every=9)
    outcome = outcome_of(read_run(folder))
    assert (outcome.before, outcome.after, outcome.change) == ("3.00 ± 0.3", "–", "–")


def test_settings_that_were_given_come_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", learning_rate=1e-5, use_lora=True, top_p=0.95)
    rows = {row.name: row for row in settings_rows([read_run(folder)])}
    given = [name for name, row in rows.items() if row.given]
    assert list(rows)[: len(given)] == given
    assert given[:2] == ["student_model", "teacher_model"]
    assert {"top_p", "use_lora", "learning_rate"} <= set(given), "1e-5 is not the default with LoRA"
    assert not rows["batch_size"].given
    assert rows["top_p"].default == "1"


def test_settings_that_differ_between_runs(tmp_path: Path) -> None:
    paths = [str(write_run(tmp_path / name, learning_rate=rate)) for name, rate in (("a", 1e-4), ("b", 2e-4))]
    rows = settings_rows(read_runs(paths))
    assert [(row.name, row.values) for row in rows if row.differs] == [("learning_rate", ("0.0001", "0.0002"))]


def test_a_run_that_has_not_told_its_settings_yet_differs_in_none(tmp_path: Path) -> None:
    known = [read_run(write_run(tmp_path / name, learning_rate=rate)) for name, rate in (("a", 1e-4), ("b", 2e-4))]
    rows = settings_rows([*known, FollowedRun(tmp_path / "next", "next").look()])
    assert [(row.name, row.values) for row in rows if row.differs] == [("learning_rate", ("0.0001", "0.0002", ""))]
    assert [row.name for row in rows if row.given][:1] == ["student_model"]


def test_an_environment_is_flat_and_tells_what_changed_when_the_run_went_on(tmp_path: Path) -> None:
    rows = {row.name: row.values for row in environment_rows([read_run(write_run(tmp_path / "run"))])}
    assert rows == {
        "python": ("3.11.2",),
        "packages torch": ("2.13.0 → 2.14.0",),
        "devices": ("H100, 79.1",),
    }


def test_before_and_after_of_each_run_stand_under_their_prompt(tmp_path: Path) -> None:
    runs = read_runs([str(write_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")])
    shown = completions_by_prompt(runs)
    assert len(shown) == 2
    for completions in shown.values():
        assert [(each.run, each.when) for each in completions] == [
            ("a", "before"), ("a", "after 4 steps"), ("b", "before"), ("b", "after 4 steps")
        ]  # fmt: skip
