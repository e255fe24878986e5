"""What the charts draw."""

from __future__ import annotations

from pathlib import Path

from local_distill.report.curves import charts_of, columns_of
from local_distill.report.reading import read_run
from tests.report.runs import records_of, write_run


def test_a_column_holds_what_the_file_says_and_none_where_it_says_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    columns = columns_of(read_run(folder))
    written = records_of(folder / "metrics.jsonl")
    steps = [record for record in written if "loss" in record]
    assert columns["train"]["step"] == [1, 2, 3, 4]
    assert columns["train"]["loss"] == [float(f"{record['loss']:.6g}") for record in steps]
    assert columns["train"]["grad_norm"][1] is None
    assert columns["eval"]["eval/reverse_kl"] == [3.0, 1.0, 0.6]


def test_places_count_from_the_start_of_the_run(tmp_path: Path) -> None:
    columns = columns_of(read_run(write_run(tmp_path / "run")))
    assert columns["train"]["tokens"] == [100, 200, 300, 400]
    assert columns["train"]["seconds"] == [2, 4, 6, 8]
    assert columns["eval"]["tokens"] == [0, 200, 400]
    assert columns["eval"]["seconds"] == [0, 4, 8]


def test_a_metric_that_a_later_step_brings_leaves_a_gap_before(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "late": 1.5}\n')
    columns = columns_of(read_run(folder))
    assert columns["train"]["late"] == [None, None, 1.5]
    assert columns["train"]["loss"][-1] is None


def test_every_metric_with_something_to_say_is_in_one_chart(tmp_path: Path) -> None:
    charts = charts_of([read_run(write_run(tmp_path / "run"))])
    drawn = [line.metric for chart in charts for line in chart.lines]
    assert len(drawn) == len(set(drawn))
    assert {"eval/reverse_kl", "reverse_kl", "loss", "grad_norm", "seconds/sample", "some/new_metric"} <= set(drawn)
    assert "skipped" not in drawn, "always 0"
    assert not {"step", "tokens", "seconds/step", "eval/reverse_kl_se"} & set(drawn)
    assert all(chart.unit for chart in charts)
