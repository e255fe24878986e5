"""The page, read as a browser reads it."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from local_distill.commands import main
from local_distill.report.page import render, report_of_ended_run
from local_distill.report.reading import read_run, read_runs
from local_distill.runs.jsonl import to_json
from tests.report.runs import ATTACK, make_evaluation, write_run

ROOT = Path(__file__).parents[2]
LOADS = {"src", "href", "srcset", "data", "action", "poster", "background", "style"}


class Page(HTMLParser):
    """Tags with their attributes, the text of scripts and styles, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.shown = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, _tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
        else:
            self.shown += data

    @property
    def data(self):
        return json.loads(self.raw["script"][0])

    @property
    def policy(self) -> str:
        return next(a["content"] or "" for t, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(render([read_run(write_run(tmp_path_factory.mktemp("report") / f"run {ATTACK[:9].replace('/', '')}"))]))


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.tags:
        for name in LOADS & attributes.keys():
            assert re.match(r"#|data:,$", attributes[name]), (tag, name, attributes[name])
        assert not any(name.startswith("on") for name in attributes), "no handlers in the markup"
    assert "@import" not in page.raw["style"][0]
    assert "url(" not in page.raw["style"][0]


def test_the_policy_allows_this_script_and_this_style_alone(page):
    def hashed(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert "default-src 'none'" in page.policy
    assert f"script-src {hashed(page.raw['script'][1])};" in page.policy
    assert f"style-src {hashed(page.raw['style'][0])};" in page.policy
    assert "unsafe" not in page.policy
    assert len(page.raw["script"]) == 2
    assert len(page.raw["style"]) == 1


def test_what_a_model_wrote_is_text(page):
    tags = {tag for tag, _ in page.tags}
    assert not {"img", "iframe", "object"} & tags
    assert sum("script><img src=x onerror" in part for part in page.shown.split("\n")) >= 2
    tokens = page.data["evaluations"]
    prompts = [tokens["texts"][c["prompt"]] for e in tokens["runs"][0] for c in e["completions"]]
    assert all(ATTACK[:-1] in prompt for prompt in prompts)


def test_the_data_cannot_end_its_element_and_survives_any_text(tmp_path):
    text = render([read_run(write_run(tmp_path / "run"))])
    start = text.index('<script id="data"')
    data = text[text.index(">", start) + 1 : text.index("</script>", start)]
    assert not set("<>&\u2028\u2029") & set(data)
    assert "</script><img" in json.loads(data)["evaluations"]["texts"][0]


def test_every_chart_has_its_numbers(page):
    curves = page.data["curves"]
    run = curves["runs"][0]
    for chart in curves["charts"]:
        for line in chart["lines"]:
            column = run["eval" if line["metric"].startswith("eval/") else "train"][line["metric"]]
            assert any(number is not None for number in column), line


def test_a_run_without_tokens_says_why_there_is_no_heat_map(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "completions.jsonl").unlink()
    page = Page(render([read_run(folder)]))
    assert "kept no numbers of single tokens" in " ".join(page.shown.split())
    assert not any(attributes.get("id") == "heat" for _, attributes in page.tags)


def test_several_runs_are_on_one_page(tmp_path):
    paths = [str(write_run(tmp_path / name, seed=seed, learning_rate=seed)) for seed, name in enumerate(["one", "two"])]
    page = Page(render(read_runs(paths)))
    assert [run["name"] for run in page.data["curves"]["runs"]] == ["one", "two"]
    assert "2 runs compared" in page.shown
    assert any(attributes.get("id") == "tokens-run" for _, attributes in page.tags)


def test_a_long_run_fits_on_a_page_of_four_megabytes(tmp_path):
    rng = random.Random(0)
    folder = write_run(tmp_path / "run", steps=100, every=25, tokens=1)
    whole = [to_json(asdict(make_evaluation(rng, 25 * i, 512, prompts=4))) for i in range(5)]
    (folder / "completions.jsonl").write_text("\n".join(whole) + "\n")
    assert len(render([read_run(folder)]).encode()) < 4e6


def test_the_command_writes_into_the_run_or_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_run(tmp_path / name)
    assert main(["report", "one"]) == 0
    assert capsys.readouterr().out == "one/report.html\n"
    assert (tmp_path / "one" / "report.html").stat().st_size > 50_000
    assert main(["report", "one", "two"]) == 0
    assert (tmp_path / "report.html").is_file()
    assert main(["report", "one", "--output", "page.html"]) == 0
    assert (tmp_path / "page.html").is_file()
    assert main(["report", "one", "--output", "absent/page.html"]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_in_one_line_and_no_more(tmp_path):
    folder = write_run(tmp_path / "run")
    assert report_of_ended_run(folder) == f"report: {folder / 'report.html'}"
    (folder / "metrics.jsonl").write_text("")
    assert report_of_ended_run(folder) == "report: none, for the run ended before anything was measured"
    (folder / "metrics.jsonl").unlink()
    told = report_of_ended_run(folder)
    assert told.count("\n") == 0
    assert f"local-distill report {folder}" in told


def test_the_report_is_there_at_once():
    """torch takes seconds to import, and nothing here needs it."""
    code = "import sys, local_distill.commands.report, local_distill.report.page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
